"""`potstill run`."""

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from potstill.cli.console import AsJson
from potstill.cli.questions import is_attended


def run(
    recipe: Annotated[Path, Parameter(name="RECIPE", negative="")],
    /,
    *,
    overrides: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    yes: Annotated[bool, Parameter(negative="")] = False,
    as_json: AsJson = False,
) -> int:
    """Distil a recipe with Prefect, in this process. The same command after a crash finishes what is missing.

    Args:
        recipe: The YAML file.
        overrides: section.field=VALUE, in place of what the file says.
        yes: Do not ask before a bill that may exceed 10 USD; without it, that is asked on a terminal only.
    """
    from potstill.home import potstill_home
    from potstill.night import take_in
    from potstill.preflight import check
    from potstill.recipe_file import load_recipe

    given = overrides or []
    loaded = load_recipe(recipe, tuple(given))
    check(loaded)
    if not yes and is_attended():
        from potstill.cli.confirming import confirm_run

        confirm_run(take_in(loaded))
    flags = [*(flag for value in given for flag in ("--set", value)), *(["--json"] if as_json else [])]
    os.environ["PYTHONSAFEPATH"] = "1"  # a file of the user's named tasks.py is not ours
    if not (Path.home() / ".prefect" / "profiles.toml").exists():  # who has set Prefect up keeps what was set
        os.environ.setdefault("PREFECT_HOME", str(potstill_home().absolute() / "prefect"))
    os.execv(  # noqa: S606 - this very program, no shell
        sys.executable, [sys.executable, "-m", "flows", str(recipe), *flags]
    )
