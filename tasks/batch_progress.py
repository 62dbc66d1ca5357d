"""How far a batch of the teacher's is, what it costs and what fails: a bar on its task run in Prefect's UI, and its log."""

import time
from collections.abc import Callable
from contextlib import suppress
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from potstill.teacher.outcome import BatchReport, Step
from tasks.server_errors import SERVER_ERRORS

WARN_SECONDS = 30.0
"""How often a batch's log says what fails."""


class BatchBar:
    """In a task. It is drawn when the batch has taken some seconds, else at its end, and has no key: a run has many.

    Where the server cannot take it, the batch goes on: what is only shown must not stop what is paid for.
    """

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._done = Step()
        self._bar: UUID | None = None
        self._warned = 0
        self._warn_at = 0.0

    def add(self, step: Step) -> None:
        """Count a step; told by the one thread that asks."""
        self._done = self._done.plus(step)

    def show(self, check: Callable[[], None]) -> None:
        """Draw what has been counted, and log now and then what has failed since; `check` raises where that is in vain."""
        check()
        done = self._done
        self._draw(done.found + done.answered, done)
        if done.failed > self._warned and time.monotonic() >= self._warn_at:
            self._warned, self._warn_at = done.failed, time.monotonic() + WARN_SECONDS
            get_run_logger().warning("%s", done.failures())

    def finish(self, report: BatchReport) -> None:
        """Draw how the batch ended."""
        done = report.found + report.answered + report.refused
        self._draw(done, self._done._replace(attempts=report.attempts, cost_usd=report.cost_usd))

    def _draw(self, done: int, spent: Step) -> None:
        share = 100 * min(done, self._answers) / max(self._answers, 1)
        said = f"{done} of {self._answers} answers, {spent.cost_usd:.4f} USD in {spent.attempts} attempts"
        said += f", {spent.failures()}" if spent.failed else ""
        with suppress(*SERVER_ERRORS):
            if self._bar is not None:
                update_progress_artifact(self._bar, share, description=said)
                return
            bar = create_progress_artifact(share, description=said)
            assert isinstance(bar, UUID)
            self._bar = bar
