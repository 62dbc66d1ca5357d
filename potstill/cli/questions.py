"""A question to who sits at a terminal; where nobody does, none is asked."""

import sys
from contextlib import suppress

from potstill.errors import UsageError


def is_attended() -> bool:
    """Whether somebody can be asked: standard input and standard error are both a terminal, and neither was closed."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def ask_to_go_on(why: str) -> None:
    """Ask on standard error: standard output is for programs. Errors: `UsageError` for any answer but yes, Ctrl-D too."""
    answer = ""
    try:
        print(f"{why}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        with suppress(UnicodeDecodeError):  # typed in another encoding than the terminal's
            answer = sys.stdin.readline()
    finally:
        if not answer.endswith("\n"):  # what is said next does not stand behind the question
            print(file=sys.stderr)
    if answer.strip().lower() not in {"y", "yes"}:
        raise UsageError("not confirmed: nothing was asked")
