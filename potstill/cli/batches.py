"""`potstill batches`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from potstill.cli.console import AsJson

if TYPE_CHECKING:
    from potstill.ledger import Ledger
    from potstill.ledger.batches import BatchOrder, BatchRow
    from potstill.llm.batches.base import BatchProtocol, BatchState
    from potstill.recipe import Teacher

LAG_SECONDS = 2.0
"""The pause before a batch is looked for again: a provider's list may lag behind."""


def batches(
    recipe: Annotated[Path, Parameter(name="RECIPE", negative="")],
    /,
    *,
    overrides: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    cancel: Annotated[bool, Parameter(negative="")] = False,
    every: Annotated[bool, Parameter(name="--all", negative="")] = False,
    as_json: AsJson = False,
) -> int:
    """Show the batches that a recipe's teacher still works at. The next run collects them, the cancelled ones too.

    Args:
        recipe: The YAML file.
        overrides: section.field=VALUE, in place of what the file says.
        cancel: Stop them at the provider; what was answered is billed, and kept. Give up what never got there, and what
            has ended and left no results.
        every: Those of other recipes at the same address too, and of `potstill teach`, which has none.
    """
    import asyncio

    from potstill.cli.console import say, show_table
    from potstill.ledger import open_ledger
    from potstill.llm.providers import base_url_of
    from potstill.night import take_in
    from potstill.recipe_file import load_recipe
    from potstill.teacher.plan import recipe_of

    read = take_in(load_recipe(recipe, tuple(overrides or ())))
    ledger = open_ledger()
    orders = ledger.open_orders(read.teacher.provider, base_url_of(read.teacher))
    wanted = [order for order in orders if every or recipe_of(order.month) == read.name]
    said: dict[str, str] = {}
    if wanted:
        wanted, said = asyncio.run(_ask_provider(read.teacher, wanted, ledger, cancel=cancel))
    left_out = len(orders) - len(wanted)
    if as_json:
        found = [
            {**row._asdict(), "recipe": recipe_of(month), "model": model, "said": said[row.token]}
            for row, model, month in wanted
        ]
        say({"batches": found, "left_out": left_out}, as_json=True)
        return 0
    if wanted:
        lines = (
            (
                row.batch_id or row.token,
                recipe_of(month) or "–",
                model,
                row.run,
                f"{row.num_requests:,}",
                said[row.token],
            )
            for row, model, month in wanted
        )
        show_table(("batch", "recipe", "model", "run", "requests", "the provider says"), lines)
    if left_out or not wanted:
        others = f"{left_out} of others at this address: see --all"
        say({"batches": others if left_out else "none"}, as_json=False)
    return 0


async def _ask_provider(
    teacher: "Teacher", orders: "list[BatchOrder]", ledger: "Ledger", *, cancel: bool
) -> "tuple[list[BatchOrder], dict[str, str]]":
    """The batches, with the ids that were never stored, and what the provider says of each, by our token.

    They are stopped before where that is wanted. Errors: those of `BatchProtocol`; `NotAuthorisedError` also for a key in
    a secret block.
    """
    from potstill.errors import NotAuthorisedError
    from potstill.llm.batches import open_batches
    from potstill.llm.endpoint import endpoint_of

    if teacher.api_key_block is not None:
        raise NotAuthorisedError(
            f"secret block {teacher.api_key_block} is read by the flow only: "
            "give --set teacher.api_key_block=null --set teacher.api_key_env=NAME, the variable that holds the key"
        )
    asked: list[BatchOrder] = []
    said: dict[str, str] = {}
    async with open_batches(endpoint_of(teacher)) as protocol:
        for order in orders:
            row, said[order.batch.token] = await _ask_for(order.batch, ledger, protocol, cancel=cancel)
            asked.append(order._replace(batch=row))
    return asked, said


async def _ask_for(
    row: "BatchRow", ledger: "Ledger", protocol: "BatchProtocol", *, cancel: bool
) -> "tuple[BatchRow, str]":
    """A batch, and what there is to say of it, once it is stopped or given up where that is wanted."""
    from potstill.llm.batches.base import NoBatchesError, ResultsGoneError

    if row.batch_id is None:
        try:
            found = await _look_for(row, ledger, protocol, cancel=cancel)
        except NoBatchesError as error:
            return row, _unknown(row, ledger, str(error), cancel=cancel)
        except ResultsGoneError as error:  # whose it was, nobody can say any more
            return row, _lost(row, ledger, "ended") if cancel else f"{error}: --cancel gives it up"
        if found is None:
            return row, _unknown(row, ledger, "the provider does not know it", cancel=cancel)
        if not found.is_certain:
            doubt = f"perhaps {found.id} ({found.said}), whose it is shows once it has ended"
            return row, f"{doubt}: stop it in the provider's console if it is yours" if cancel else doubt
        row = row._replace(batch_id=found.id, status="running")
    assert row.batch_id is not None
    state = await (protocol.cancel(row.batch_id) if cancel else protocol.state(row.batch_id))
    if cancel and state.status == "ended" and await _are_gone(state, protocol):
        return row, _lost(row, ledger, state.said)
    return row, state.said


async def _look_for(
    row: "BatchRow", ledger: "Ledger", protocol: "BatchProtocol", *, cancel: bool
) -> "BatchState | None":
    """A batch whose id was never stored; one that is to be given up is looked for as often as a run does."""
    import asyncio

    from potstill.teacher.finding import find_again
    from potstill.teacher.watching import LOOKS

    found = await find_again(row, ledger, protocol)
    for _ in range(LOOKS - 1 if cancel else 0):
        if found is not None:
            break
        await asyncio.sleep(LAG_SECONDS)
        found = await find_again(row, ledger, protocol)
    return found


async def _are_gone(state: "BatchState", protocol: "BatchProtocol") -> bool:
    """Whether the results of a batch that has ended cannot be had any more."""
    from potstill.errors import TeacherError
    from potstill.llm.batches.base import ResultsGoneError

    try:
        async for _ in protocol.results(state):
            break
    except TeacherError as error:
        return isinstance(error, ResultsGoneError)
    return False


def _lost(row: "BatchRow", ledger: "Ledger", said: str) -> str:
    """Give up a batch that has ended and that nobody can collect; returns what to say of it."""
    from potstill.teacher.collecting import close_lost

    if not ledger.claim_batch(row.token):
        return f"{said}, its results are gone, and a run still looks for them: end that run, then cancel again"
    close_lost(ledger, row, "the results of its batch are gone")
    return f"given up ({said}, its results are gone): what it may have cost counts at its upper bound"


def _unknown(row: "BatchRow", ledger: "Ledger", why: str, *, cancel: bool) -> str:
    """What to say of a batch that the provider does not have; it is given up where that is wanted."""
    from potstill.teacher.collecting import close_unsubmitted

    if not cancel:
        return f"not found ({why}): --cancel gives it up"
    if not ledger.claim_batch(row.token):
        return f"not found ({why}), and a run still hands it in: end that run, then cancel again"
    close_unsubmitted(ledger, row)
    return f"given up, nothing was billed ({why})"
