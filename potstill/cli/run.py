"""`potstill run`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from potstill.cli.console import AsJson

if TYPE_CHECKING:
    from potstill.recipe import Recipe


def run(
    recipe: Annotated[Path, Parameter(name="RECIPE", negative="")],
    /,
    *,
    overrides: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    as_json: AsJson = False,
) -> int:
    """Distil a recipe with Prefect, in this process. The same command after a crash finishes what is missing.

    Args:
        recipe: The YAML file.
        overrides: section.field=VALUE, in place of what the file says.
    """
    from potstill.recipe_file import load_recipe

    given = overrides or []
    check(load_recipe(recipe, tuple(given)))
    flags = [*(flag for value in given for flag in ("--set", value)), *(["--json"] if as_json else [])]
    os.execv(  # noqa: S606 - this very program, no shell
        sys.executable, [sys.executable, "-m", "flows", str(recipe), *flags]
    )


def check(recipe: Recipe) -> None:
    """What would stop the run later, found before anything is started. Errors: as the stages raise them."""
    from potstill.curation.curate import find_inputs
    from potstill.llm.keys import find_key
    from potstill.llm.pricing import find_rates
    from potstill.llm.providers import PROVIDERS
    from potstill.llm.terms import check_terms

    teacher = recipe.teacher
    base_url = teacher.base_url or PROVIDERS[teacher.provider].default_base_url or ""
    find_inputs(recipe.curation.inputs)
    check_terms(teacher)
    find_key(teacher.api_key_env, base_url)
    find_rates(teacher.provider, teacher.model, base_url, teacher.price)
