"""What Potstill says to Prefect beside the states of its runs: an automation, or any listener, can act on it.

Event names, resource ids and payload fields are an interface: `deployments.alerts` and the page docs/alerts.md name them.
"""

from decimal import Decimal
from uuid import NAMESPACE_URL, uuid5

from prefect.events import emit_event

RELEASED = "potstill.released"
"""A version serves from now on. Payload: recipe, version, verdict, headline."""
BUDGET = "potstill.budget.reached-80"
"""Four fifths of a cap are committed. Payload: recipe, account, committed_usd, cap_usd, percent."""
WAITING = "potstill.waiting"
"""A run is set aside until somebody answers: see `tasks.waiting`. The resource is the run itself."""
BUDGET_SHARE = Decimal("0.8")

ACCOUNT_LABEL = "potstill.account"
VERSION_LABEL = "potstill.version"
RECIPE_LABEL = "potstill.recipe"
"""Labels of the resource, for triggers: these can only look at labels, not at the payload."""

_said: set[str] = set()


def recipe_resource(recipe: str) -> str:
    """The id under which Prefect's event feed lists what concerns a recipe."""
    return f"potstill.recipe.{recipe}"


def say_released(recipe: str, version: str, verdict: str, headline: str) -> None:
    """A version has become the champion; the run that did it is among the event's related resources.

    A resumed run may say it again: the alert's automation lets one through for a version.
    """
    payload = {"recipe": recipe, "version": version, "verdict": verdict, "headline": headline}
    emit_event(RELEASED, resource=_resource(recipe) | {VERSION_LABEL: version}, payload=payload)


def say_budget(recipe: str, account: str, committed_usd: Decimal, cap_usd: Decimal | None) -> bool:
    """Say once that four fifths of an account's cap are committed; call it as often as you look.

    A process says it once for an account, and always under the same event id; the alert's automation lets one through for an
    account, so that a resumed run does not say it again. Returns whether it was said now.
    """
    if cap_usd is None or committed_usd < cap_usd * BUDGET_SHARE or account in _said:
        return False
    _said.add(account)
    emit_event(
        BUDGET,
        resource=_resource(recipe) | {ACCOUNT_LABEL: account},
        payload={
            "recipe": recipe,
            "account": account,
            "committed_usd": f"{committed_usd:.2f}",
            "cap_usd": f"{cap_usd:.2f}",
            "percent": f"{committed_usd / cap_usd:.0%}" if cap_usd else "all",
        },
        id=uuid5(NAMESPACE_URL, f"{BUDGET}/{account}"),
    )
    return True


def _resource(recipe: str) -> dict[str, str]:
    return {"prefect.resource.id": recipe_resource(recipe), "prefect.resource.name": recipe, RECIPE_LABEL: recipe}
