"""`potstill estimate`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from potstill.cli.console import AsJson
from potstill.errors import UsageError


def estimate(
    recipe: Annotated[Path, Parameter(name="RECIPE", negative="")],
    /,
    *,
    overrides: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    smoke: int = 16,
    as_json: AsJson = False,
) -> int:
    """Ask the teacher a few prompts, and say what the whole recipe will cost. The run does not ask for them again.

    Args:
        recipe: The YAML file.
        overrides: section.field=VALUE, in place of what the file says.
        smoke: How many prompts are asked and paid for, those that are answered already included.
    """
    if smoke < 1:
        raise UsageError(f"--smoke {smoke}: at least one prompt must be asked; an interval needs two")
    from potstill.cli.estimating import run_estimate
    from potstill.night import take_in
    from potstill.recipe_file import load_recipe

    return run_estimate(take_in(load_recipe(recipe, tuple(overrides or ()))), smoke, as_json=as_json)
