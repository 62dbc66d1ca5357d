"""Runs the parent flow in this process: `python -m flows RECIPE [--set section.field=VALUE]… [--json]`.

With no PREFECT_API_URL it needs no server; with one, the run is shown there. `potstill run` calls this.
"""

import argparse
import os
import sys
from pathlib import Path

from prefect.exceptions import MissingResult
from rich.console import Console

from flows.distill_student import distill_student
from potstill.errors import PotstillError
from potstill.gate import EXIT_CODES
from potstill.recipe_file import load_recipe
from potstill.report.run_report import RunSummary
from potstill.report.terminal import show_run
from tasks.logs import without_tracebacks


def main() -> int:
    """Run one recipe and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows", description="Distil one recipe.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--json", dest="as_json", action="store_true")
    arguments = parser.parse_args()
    debug = os.environ.get("POTSTILL_DEBUG") == "1"
    if not debug:
        without_tracebacks()
    try:
        recipe = load_recipe(arguments.recipe, tuple(arguments.overrides))
        state = distill_student(recipe, return_state=True)  # pyright: ignore[reportCallIssue] - Prefect's wrapper takes it
        summary = state.result()
    except PotstillError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command's output
        return error.exit_code
    except MissingResult:
        return 1
    assert isinstance(summary, RunSummary)
    if arguments.as_json:
        print(summary.model_dump_json())  # noqa: T201 - same
    else:
        show_run(summary, Console())
    return EXIT_CODES[summary.verdict]


if __name__ == "__main__":
    sys.exit(main())
