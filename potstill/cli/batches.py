"""`potstill batches`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from potstill.cli.console import AsJson


def batches(
    recipe: Annotated[Path, Parameter(name="RECIPE", negative="")],
    /,
    *,
    overrides: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    cancel: Annotated[bool, Parameter(negative="")] = False,
    as_json: AsJson = False,
) -> int:
    """Show the batches that a recipe's teacher still works at. The next run collects them, the cancelled ones too.

    Args:
        recipe: The YAML file.
        overrides: section.field=VALUE, in place of what the file says.
        cancel: Stop them at the provider; what was answered until then is billed, and kept.
    """
    import asyncio

    from potstill.cli.console import say, show_table
    from potstill.ledger import open_ledger
    from potstill.llm.batches import open_batches
    from potstill.llm.endpoint import endpoint_of
    from potstill.llm.providers import base_url_of
    from potstill.recipe_file import load_recipe

    teacher = load_recipe(recipe, tuple(overrides or ())).teacher
    rows = open_ledger().open_batches(teacher.provider, base_url_of(teacher))

    async def look() -> dict[str, str]:
        """What the provider says of each, by our token."""
        said: dict[str, str] = {}
        async with open_batches(endpoint_of(teacher)) as protocol:
            for row in rows:
                if row.batch_id is None:
                    said[row.token] = "not known to have reached the provider"
                    continue
                state = await (protocol.cancel(row.batch_id) if cancel else protocol.state(row.batch_id))
                said[row.token] = state.said
        return said

    states = asyncio.run(look()) if rows else {}
    if as_json:
        found = [{**row._asdict(), "said": states[row.token]} for row in rows]
        say({"batches": found}, as_json=True)
    elif rows:
        lines = ((row.batch_id or row.token, row.run, f"{row.num_requests:,}", states[row.token]) for row in rows)
        show_table(("batch", "run", "requests", "the provider says"), lines)
    else:
        say({"batches": "none"}, as_json=False)
    return 0
