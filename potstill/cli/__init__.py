"""The command line: one file a command, each imported only when it is called."""

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from potstill import __version__
from potstill.errors import UsageError
from potstill.exits import DEBUG_VARIABLE, exit_code_of

DEBUG_FLAG = "--debug"

COMMANDS = {
    "run": ("run:run", "Distil a recipe: curate, teach, train, evaluate, gate, release."),
    "estimate": ("estimate:estimate", "What a recipe will cost, before the full spend."),
    "curate": ("curate:curate", "Production logs to a clean, split prompt set."),
    "teach": ("teach:teach", "Every prompt answered once by the teacher."),
    "batches": ("batches:batches", "The provider's batches of a recipe that have not been collected."),
    "train": ("train:train", "The teacher's answers to a trained student."),
    "generate": ("generate:generate", "A student's answers to the test split."),
    "evaluate": ("evaluate:evaluate", "The answers of several arms, scored on the test split."),
    "gate": ("gate:gate", "Whether the candidate may replace the teacher."),
    "release": ("release:release", "A student that passed its gate becomes a version and the champion."),
    "approve": ("approve:approve", "Release a student that passed and awaits somebody's word."),
    "releases": ("release:releases", "The versions of a recipe, and which of them serves."),
    "rollback": ("release:rollback", "Swap the champion and the version before it."),
    "serve": ("serve:serve", "Serve the released students on an OpenAI-compatible endpoint."),
    "webhook": ("webhook:webhook", "Receive new prompts by signed webhooks, and start runs for them."),
    "doctor": ("doctor:doctor", "What this machine lacks, with the remedy for each."),
    "report": ("report:report", "Write the report of a recipe's latest run again."),
}

app = App(
    name="potstill",
    version=__version__,
    help="Distils the production prompts of a frontier teacher into a small student of your own. "
    "Every command takes --debug for a traceback.",
    suppress_keyboard_interrupt=False,  # `exit_code_of` says how to go on
)
for _name, (_path, _help) in COMMANDS.items():
    app.command(f"potstill.cli.{_path}", name=_name, help=_help)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code; an error is said in a line or two on standard error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = DEBUG_FLAG in given
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
    tokens = [token for token in given if token != DEBUG_FLAG]
    try:
        sys.exit(exit_code_of(lambda: app(tokens, exit_on_error=False, result_action="return_value"), debug=debug))
    except CycloptsError:
        sys.exit(UsageError.exit_code)
