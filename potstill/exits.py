"""How a command ends: with its exit code and, where it failed, a line or two on standard error."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from potstill.errors import PotstillError, UsageError

DEBUG_VARIABLE = "POTSTILL_DEBUG"
"""Set to 1 where `--debug` was given, for the processes that a command becomes or starts."""
INTERRUPTED = 130
CLOSING_SECONDS = 5.0
"""What a command has in flight is closed in the ledger within this time, however often Ctrl-C is pressed."""
HOW_TO_GO_ON = "interrupted: run the same again to go on"
WRONG_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
"""What the operating system says of a path that the user gave wrongly: bad usage. Anything else, such as a full disk, is not."""


def exit_code_of(command: Callable[[], object], *, debug: bool) -> int:
    """Run a command; what it returns is its exit code where that is a number, else it is 0. `debug` lets errors out."""
    try:
        with _one_interrupt():
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


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """The first Ctrl-C interrupts; another one ends the process, but not before `CLOSING_SECONDS` have passed.

    Where there was one, it is ignored for what is left of the process: an interpreter that shuts down gives the signal
    its default meaning again, and would die of it in place of exiting with 130.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield
        return
    first: float | None = None

    def handle(_number: int, _frame: object) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - first > CLOSING_SECONDS:
            os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if first is None else signal.SIG_IGN)


def _fail(said: str, code: int) -> int:
    print(f"error: {said}", file=sys.stderr)  # noqa: T201 - a command's output
    return code
