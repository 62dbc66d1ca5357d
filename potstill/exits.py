"""How a command ends: with its exit code and, where it failed, a line or two on standard error."""

import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from potstill.errors import PotstillError, UsageError

DEBUG_VARIABLE = "POTSTILL_DEBUG"
"""Set to 1 where `--debug` was given, for the processes that a command becomes or starts."""
INTERRUPTED = 130
HOW_TO_GO_ON = "interrupted: run the same again to go on"
LONGEST_END_SECONDS = 20.0
"""Long enough for a training to save where it is."""
WRONG_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
"""What the operating system says of a path that the user gave wrongly: bad usage. Anything else, such as a full disk, is not."""


def interrupt(*_: object) -> NoReturn:
    """A handler of signals: interrupts, and ends the process where that takes too long, as with a server that died too."""
    timer = threading.Timer(LONGEST_END_SECONDS, _end)
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


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


def _end() -> None:
    print(HOW_TO_GO_ON, file=sys.stderr, flush=True)  # noqa: T201 - a command's output
    os._exit(INTERRUPTED)


def _fail(said: str, code: int) -> int:
    print(f"error: {said}", file=sys.stderr)  # noqa: T201 - a command's output
    return code
