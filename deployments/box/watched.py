"""One process that is kept alive: started when what it needs is there, started again when it dies, more slowly each time."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from deployments.box.places import Condition, Kept
from deployments.box.question import Question
from potstill.subprocesses import Child, process_started_at

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 60.0
STEADY_SECONDS = 30.0
"""A process that has lived this long is not one that dies at once."""
MANY_DEATHS = 3
"""So many at once, and it is said to be failing."""
MAX_LOG_BYTES = 5_000_000
LOOK_AGAIN_SECONDS = 2.0
"""How often it is looked whether what was lacking is there."""


class Process(NamedTuple):
    """What to run, and what it needs."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = {}
    """Beside that of the supervisor."""
    address: str | None = None
    after: tuple[str, ...] = ()
    """Processes that must be up, or done, before it is started for the first time."""
    lacks: Callable[[], str | None] | None = None
    """What the user has to make or set first, None where all is there; may take long."""
    answers: Callable[[float], bool] | None = None
    """Whether the process that was started at this time, in seconds since the epoch, is ready; asked until it is, and may
    take long. Without it, what runs is ready."""
    is_step: bool = False
    """Ends by itself, and is done with exit status 0."""
    stops: int = 1
    """What has the same number is stopped together; the lowest goes first."""


class Watched:
    """A process and what became of it. `tick` looks after it, and never waits."""

    def __init__(self, process: Process, log_path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.process = process
        self.condition: Condition = "waiting"
        self._log_path = log_path
        self._clock = clock
        self._child: Child | None = None
        self._born: float = 0
        self._started_at: float | None = None
        self._lack = process.lacks and Question(process.lacks)
        self._answer: Question[bool] | None = None
        self._next_start: float = 0
        self._num_early_deaths = 0
        self._num_restarts = 0
        self._remark = ""

    @property
    def is_ready(self) -> bool:
        return self.condition in {"up", "done"}

    def kept(self) -> Kept:
        """What status shows of it."""
        return Kept(
            name=self.process.name,
            condition=self.condition,
            pid=self._child and self._child.pid,
            started_at=self._started_at if self._child else None,
            address=self.process.address,
            num_restarts=self._num_restarts,
            remark=self._remark,
        )

    def tick(self, *, may_start: bool) -> None:
        """Start it, see whether it answers, or see that it has died."""
        if self.condition in {"done", "stopped"}:
            return
        if self._child is None:
            self._start(may_start=may_start)
        elif (status := self._child.poll()) is not None:
            self._bury(status)
        elif self.condition == "starting" and not self.process.is_step:
            self._see_whether_it_answers()
        elif self.condition == "up" and self._clock() - self._born > STEADY_SECONDS:
            self._num_early_deaths = 0

    def pause(self) -> None:
        """Let it do nothing more until it is stopped."""
        self._signal(signal.SIGSTOP)

    def stop(self, grace_seconds: float) -> None:
        """SIGTERM, then SIGKILL to its group after the grace."""
        if self._child is not None:
            self._signal(signal.SIGCONT)
            self._child.stop(grace_seconds)
            self._child = None
        self.condition = "stopped"

    def bound_log(self) -> None:
        """Keep the last part of a log that has grown too long; the child writes on in the same file."""
        bound_log(self._log_path)

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)

    def _start(self, *, may_start: bool) -> None:
        if self._clock() < self._next_start:
            return
        if not may_start:
            self.condition = "waiting"
            return
        if not self._has_all_it_needs():
            return
        born_at = time.time()
        try:
            self._child = Child(self.process.command, log_path=self._log_path, env=self.process.environment)
        except OSError as error:  # such as a full disk, which may have room again
            self._try_later(str(error))
            return
        self._born, self._started_at = self._clock(), process_started_at(self._child.pid)
        answers = self.process.answers
        self._answer = answers and Question(partial(answers, born_at))  # an answer of the one before counts no more
        self.condition = "starting"

    def _has_all_it_needs(self) -> bool:
        """False also while that is not known."""
        if self._lack is None:
            return True
        answer = self._lack.ask()
        if answer is None:
            if self.condition == "waiting":
                self._remark = "it is looked whether all is there that it needs"
            return False
        if missing := answer.result():
            self.condition, self._remark = "off", missing
            self._next_start = self._clock() + LOOK_AGAIN_SECONDS
        return not missing

    def _see_whether_it_answers(self) -> None:
        if self._answer is not None:
            answer = self._answer.ask()
            if answer is None or not answer.result():
                return
        self.condition, self._remark = "up", ""

    def _bury(self, status: int) -> None:
        assert self._child is not None
        self._child.wait()
        last = self._child.log_tail(1)
        self._child = None
        if self.process.is_step and status == 0:
            self.condition, self._remark = "done", ""
            return
        if self._clock() - self._born > STEADY_SECONDS:
            self._num_early_deaths = 0
        self._num_restarts += 1
        self._try_later(f"{_how(status)}{f': {last}' if last else ''}")

    def _try_later(self, remark: str) -> None:
        delay = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**self._num_early_deaths)
        self._num_early_deaths += 1
        self._next_start = self._clock() + delay
        self.condition = "failing" if self._num_early_deaths >= MANY_DEATHS else "restarting"
        self._remark = remark


def bound_log(path: Path) -> None:
    """Copy a log that is too long to NAME.log.1, in place of the one before, and empty it: who appends to it goes on.

    On a full disk it is emptied all the same, and the copy holds the part that found room: a log must end nothing that runs.
    """
    with suppress(OSError):
        if path.stat().st_size <= MAX_LOG_BYTES:
            return
        with suppress(OSError):
            path.with_name(f"{path.name}.1").write_bytes(path.read_bytes())
        with path.open("rb+") as log:
            log.truncate(0)


def _how(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
