"""Runs the parent flow in this process: `python -m flows RECIPE [--set section.field=VALUE]… [--json]`.

With no PREFECT_API_URL it needs no server; with one, the run is shown there. `potstill run` calls this.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from prefect.exceptions import MissingResult

from flows.distill_student import distill_student
from potstill.errors import PotstillError
from potstill.gate import EXIT_CODES
from potstill.recipe_file import load_recipe
from potstill.report.run_report import RunSummary


def main() -> int:
    """Run one recipe and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows", description="Distil one recipe.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--json", dest="as_json", action="store_true")
    arguments = parser.parse_args()
    debug = os.environ.get("POTSTILL_DEBUG") == "1"
    if not debug:
        _without_tracebacks()
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
    print(summary.model_dump_json() if arguments.as_json else summary.describe())  # noqa: T201 - same
    return EXIT_CODES[summary.verdict]


def _without_tracebacks() -> None:
    """Prefect logs the traceback of everything that a task raises; what Potstill raises on purpose explains itself."""

    def shorten(record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], PotstillError):
            record.exc_info, record.exc_text = None, None
        return True

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(shorten)


if __name__ == "__main__":
    sys.exit(main())
