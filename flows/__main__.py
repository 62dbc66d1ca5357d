"""Runs the parent flow in this process: `python -m flows RECIPE [--set section.field=VALUE]… [--json]`.

With no PREFECT_API_URL it needs no server; with one, the run is shown there. `potstill run` calls this.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from prefect.exceptions import ExternalSignal, MissingResult
from rich.console import Console

from flows.distill_student import distill_student
from potstill.errors import PotstillError
from potstill.exits import DEBUG_VARIABLE, exit_code_of
from potstill.gate import EXIT_CODES
from potstill.keeper import start_keeper
from potstill.recipe_file import load_recipe
from potstill.report.run_report import RunSummary
from potstill.report.terminal import show_run
from tasks.logs import quiet_logs
from tasks.server import start_server


def main() -> int:
    """Run one recipe and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows", description="Distil one recipe.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--json", dest="as_json", action="store_true")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, tuple(arguments.overrides))
    start_server()
    try:
        state = distill_student(recipe, return_state=True)  # pyright: ignore[reportCallIssue] - Prefect's wrapper takes it
    except ExternalSignal:
        raise KeyboardInterrupt from None
    try:
        summary = state.result()
    except MissingResult:
        raise PotstillError(f"the run ended as {state.name} with no result: run the same again") from None
    assert isinstance(summary, RunSummary)
    if arguments.as_json:
        print(summary.model_dump_json())  # noqa: T201 - a command's output
    else:
        show_run(summary, Console())
    return EXIT_CODES[summary.verdict]


if __name__ == "__main__":
    keeper = start_keeper()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped by a supervisor as by Ctrl-C
    debug = os.environ.get(DEBUG_VARIABLE) == "1"
    if not debug:
        quiet_logs()
    sys.exit(exit_code_of(main, debug=debug))
