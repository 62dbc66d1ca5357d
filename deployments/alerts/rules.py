"""Alerts → automations: what each waits for, and what it says."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from deployments.alerts.config import Alert, Target
from deployments.automations import of_deployments
from tasks.events import ACCOUNT_LABEL, BUDGET, RELEASED, VERSION_LABEL, recipe_resource

PREFIX = "potstill alert: "
PARENTS = ["distill-student", "redistill", "watch"]
"""Flows whose end is told; a child's failure fails its parent, and is told once."""
TEST = "potstill.alerts.test"
ONCE = timedelta(days=31)
"""An account's budget, and a version's release, are told once in this time: longer than a month's account lives."""

RECIPE = "{{ flow_run.parameters.recipe.name or deployment.name }}"
STATE = "{{ event.resource['prefect.state-name'] }}: {{ (event.resource['prefect.state-message'] or 'no message') | truncate(600) }}"
REMEDIES = {
    Alert.FAILED: "read the message, mend what it names, and start the same recipe again: what is paid for is kept.",
    Alert.CRASHED: "start the same recipe again, or `prefect flow-run retry` this run: what is paid for is kept.",
    Alert.UNDECIDED: "give the test split more prompts (the report says how many), or lower the floor knowingly.",
    Alert.REJECTED: "read the report's failing checks; the champion goes on serving.",
    Alert.RELEASED: "nothing to do; `potstill rollback RECIPE` brings back the version before.",
    Alert.BUDGET: "raise the cap in the recipe's budget, or let the run stop at it: it can be resumed later.",
}
ENDED = {
    Alert.FAILED: {"prefect.state-type": "FAILED"},
    Alert.CRASHED: {"prefect.state-type": "CRASHED"},
    Alert.UNDECIDED: {"prefect.state-name": "GateUndecided"},
    Alert.REJECTED: {"prefect.state-name": ["GateRejected", "NotApproved"]},
}
"""Labels of the state that a run ends in; the type where the name may be another, such as TimedOut."""


class Message(NamedTuple):
    subject: str
    body: str


def automations_of(target: Target, block: UUID, ui_url: str) -> list[AutomationCore]:
    """One for each alert of a target, and one for `--test`."""
    rules = [
        AutomationCore(
            name=f"{PREFIX}{target.label}: {alert}",
            description=f"Tells {target.label} of what is {alert}. Made from the alerts file: change it there.",
            trigger=_trigger(alert, target.recipes),
            actions=[_send(block, message_of(alert, ui_url))],
        )
        for alert in dict.fromkeys(target.on)
    ]
    return [*rules, _test_rule(target, block)]


def message_of(alert: Alert, ui_url: str) -> Message:
    """Templates that Prefect's server fills in. A value that is missing leaves a gap: nothing in them may raise."""
    more = f"To do: {REMEDIES[alert]}\nRunbook: docs/operations.md#{alert}"
    run = (
        f"{{% if flow_run %}}Run: {{{{ flow_run.name }}}}\n{ui_url}/runs/flow-run/{{{{ flow_run.id }}}}\n{{% endif %}}"
    )
    if alert is Alert.RELEASED:
        subject = "Potstill: {{ event.payload.recipe }} released"
        return Message(
            subject,
            "{{ event.payload.recipe }}@{{ event.payload.version }} serves from now on. "
            f"Verdict: {{{{ event.payload.verdict }}}}. {{{{ event.payload.headline | truncate(600) }}}}\n{run}{more}",
        )
    if alert is Alert.BUDGET:
        subject = "Potstill: {{ event.payload.recipe }} has used {{ event.payload.percent }} of its budget"
        return Message(
            subject,
            "Recipe {{ event.payload.recipe }}: {{ event.payload.committed_usd }} of {{ event.payload.cap_usd }} USD are "
            f"committed in account {{{{ event.payload.account }}}}.\n{run}{more}",
        )
    return Message(f"Potstill: {RECIPE} {alert}", f"Recipe {RECIPE}\n{STATE}\n{run}{more}")


def _trigger(alert: Alert, recipes: Sequence[str] | None) -> EventTrigger:
    if alert in ENDED:
        related = of_deployments(PARENTS)
        if recipes is not None:
            related[1]["prefect.resource.name"] = list(recipes)
        return _reactive("prefect.flow-run.*", {"prefect.resource.id": "prefect.flow-run.*"} | ENDED[alert], related)
    resources = [recipe_resource(recipe) for recipe in recipes or ["*"]]
    if alert is Alert.RELEASED:
        once = {"prefect.resource.id", VERSION_LABEL}
        return _reactive(RELEASED, {"prefect.resource.id": resources}, for_each=once, within=ONCE)
    return _reactive(BUDGET, {"prefect.resource.id": resources}, for_each={ACCOUNT_LABEL}, within=ONCE)


def _test_rule(target: Target, block: UUID) -> AutomationCore:
    message = Message("Potstill: a test", f"{target.label} hears of: {', '.join(target.on)}. Asked for by `--test`.")
    return AutomationCore(
        name=f"{PREFIX}{target.label}: test",
        description="Sends when `python -m deployments.alerts FILE --test` asks.",
        trigger=_reactive(TEST, {"prefect.resource.id": f"{TEST}.{target.label}"}),
        actions=[_send(block, message)],
    )


def _reactive(event: str, match: dict[str, Any], related: Any = None, **window: Any) -> EventTrigger:
    return EventTrigger(posture=Posture.Reactive, expect={event}, match=match, match_related=related or {}, **window)  # pyright: ignore[reportArgumentType] - it takes what the server takes


def _send(block: UUID, message: Message) -> SendNotification:
    return SendNotification(block_document_id=block, subject=message.subject, body=message.body)
