"""How a command ends: with its exit code and, where it failed, a line or two on standard error."""

import os
import sys
from collections.abc import Callable

from potstill.errors import PotstillError, UsageError

DEBUG_VARIABLE = "POTSTILL_DEBUG"
INTERRUPTED = 130
WRONG_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
"""What the operating system says of a path that the user gave wrongly: bad usage. Anything else, such as a full disk, is not."""


def wants_traceback() -> bool:
    """True where `--debug` was given, to this process or to the one that started it."""
    return os.environ.get(DEBUG_VARIABLE) == "1"


def exit_code_of(command: Callable[[], object]) -> int:
    """Run a command; what it returns is its exit code where that is a number, else it is 0."""
    try:
        code = command()
    except PotstillError as error:
        return _fail(error, str(error), error.exit_code)
    except OSError as error:
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _fail(error, said, UsageError.exit_code if isinstance(error, WRONG_PATH) else PotstillError.exit_code)
    except KeyboardInterrupt:
        print("interrupted: run the same again to go on", file=sys.stderr)  # noqa: T201 - a command's output
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _fail(error: Exception, said: str, code: int) -> int:
    if wants_traceback():
        raise error
    print(f"error: {said}", file=sys.stderr)  # noqa: T201 - a command's output
    return code
