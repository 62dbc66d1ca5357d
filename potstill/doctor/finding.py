"""What a check found, and how checks are run: side by side, each bounded in time, none able to stop another."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

Status = Literal["ok", "warn", "fail"]
CHECK_SECONDS = 5.0
"""How long one check may take."""


class Finding(NamedTuple):
    """One line of the doctor's table."""

    status: Status
    name: str
    """What was looked at."""
    said: str
    remedy: str = ""
    """What to do about it; empty where nothing has to be done."""


class Check(NamedTuple):
    """One question."""

    name: str
    look: Callable[[], Finding | Iterable[Finding]]
    seconds: float = CHECK_SECONDS


def ok(name: str, said: str) -> Finding:
    return Finding("ok", name, said)


def warn(name: str, said: str, remedy: str) -> Finding:
    return Finding("warn", name, said, remedy)


def fail(name: str, said: str, remedy: str) -> Finding:
    return Finding("fail", name, said, remedy)


def examine(checks: Sequence[Check]) -> list[Finding]:
    """The findings of all checks, in the order of the checks. One that raises, or takes too long, is a finding too."""
    running = [_Running(check) for check in checks]
    return [finding for one in running for finding in one.wait()]


class _Running:
    def __init__(self, check: Check) -> None:
        self._check = check
        self._found: list[Finding] = []
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._look, name=f"doctor-{check.name}", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        try:
            found = self._check.look()
            self._found = [found] if isinstance(found, Finding) else list(found)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever goes wrong is what the doctor is asked for
            said = " ".join(str(error).split())[:300] or type(error).__name__
            self._found = [fail(self._check.name, said, _remedy(error))]

    def wait(self) -> list[Finding]:
        self._thread.join(max(0.0, self._began + self._check.seconds - time.monotonic()))
        if self._thread.is_alive():
            said = f"no answer within {self._check.seconds:g} s"
            return [fail(self._check.name, said, "look at what it waits for: a disk, a network, a lock")]
        return self._found


def _remedy(error: BaseException) -> str:
    """A message of Potstill's own ends with the remedy; of any other error nobody knows one."""
    from potstill.errors import PotstillError

    return (
        "" if isinstance(error, PotstillError) else f"{type(error).__name__}: not foreseen; run it again with --debug"
    )
