"""`potstill batches`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from potstill.cli.console import AsJson

if TYPE_CHECKING:
    from potstill.ledger.batches import BatchRow
    from potstill.recipe import Teacher


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
        cancel: Stop them at the provider; what was answered until then is billed, and kept.
        every: Those of other recipes at the same address too, and of `potstill teach`, which has none.
    """
    import asyncio

    from potstill.cli.console import say, show_table
    from potstill.ledger import open_ledger
    from potstill.llm.providers import base_url_of
    from potstill.recipe_file import load_recipe
    from potstill.teacher.plan import recipe_of

    read = load_recipe(recipe, tuple(overrides or ()))
    orders = open_ledger().open_orders(read.teacher.provider, base_url_of(read.teacher))
    wanted = [order for order in orders if every or recipe_of(order.month) == read.name]
    said = asyncio.run(_ask_provider(read.teacher, [order.batch for order in wanted], cancel=cancel)) if wanted else {}
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


async def _ask_provider(teacher: "Teacher", rows: "list[BatchRow]", *, cancel: bool) -> dict[str, str]:
    """What the provider says of each batch, by our token, once it is stopped where that is wanted.

    Errors: those of `BatchProtocol`; `NotAuthorisedError` also for a key in a secret block.
    """
    from potstill.errors import NotAuthorisedError
    from potstill.llm.batches import open_batches
    from potstill.llm.endpoint import endpoint_of

    if teacher.api_key_block is not None:
        raise NotAuthorisedError(
            f"secret block {teacher.api_key_block} is read by the flow only: "
            "give --set teacher.api_key_block=null --set teacher.api_key_env=NAME, the variable that holds the key"
        )
    said: dict[str, str] = {}
    async with open_batches(endpoint_of(teacher)) as protocol:
        for row in rows:
            if row.batch_id is None:
                said[row.token] = "not known to have reached the provider"
                continue
            state = await (protocol.cancel(row.batch_id) if cancel else protocol.state(row.batch_id))
            said[row.token] = state.said
    return said
