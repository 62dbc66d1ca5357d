"""How a command ends: with its exit code and, where it failed, a line or two on standard error."""

import sys
from collections.abc import Callable

from potstill.errors import PotstillError, UsageError

DEBUG_VARIABLE = "POTSTILL_DEBUG"
"""Set to 1 where `--debug` was given, for the processes that a command becomes or starts."""
INTERRUPTED = 130
HOW_TO_GO_ON = "interrupted: run the same again to go on"
WRONG_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
"""What the operating system says of a path that the user gave wrongly: bad usage. Anything else, such as a full disk, is not."""


def exit_code_of(command: Callable[[], object], *, debug: bool) -> int:
    """Run a command; what it returns is its exit code where that is a number, else it is 0. `debug` lets errors out."""
    try:
        code = command()
    except PotstillError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except OSError as error:
        if debug:
            raise
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _fail(said, UsageError.exit_code if isinstance(error, WRONG_PATH) else PotstillError.exit_code)
    except KeyboardInterrupt:
        print(HOW_TO_GO_ON, file=sys.stderr)  # noqa: T201 - a command's output
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _fail(said: str, code: int) -> int:
    print(f"error: {said}", file=sys.stderr)  # noqa: T201 - a command's output
    return code
