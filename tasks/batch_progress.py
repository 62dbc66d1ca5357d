"""How far a batch of the teacher's is, and what it costs: a bar on its task run in Prefect's UI."""

from contextlib import suppress
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from potstill.teacher.outcome import BatchReport, Step


class BatchBar:
    """In a task. It is drawn when the batch has taken some seconds, else at its end, and has no key: a run has many.

    Where the server cannot take it, the batch goes on: what is only shown must not stop what is paid for.
    """

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._done = Step()
        self._bar: UUID | None = None

    def add(self, step: Step) -> None:
        """Count a step; told by the one thread that asks."""
        self._done = self._done.plus(step)

    def show(self) -> None:
        """Draw what has been counted."""
        self._draw(self._done.found + self._done.answered, self._done)

    def finish(self, report: BatchReport) -> None:
        """Draw how the batch ended."""
        done = report.found + report.answered + report.refused
        self._draw(done, Step(attempts=report.attempts, cost_usd=report.cost_usd))

    def _draw(self, done: int, spent: Step) -> None:
        share = 100 * min(done, self._answers) / max(self._answers, 1)
        said = f"{done} of {self._answers} answers, {spent.cost_usd:.4f} USD in {spent.attempts} attempts"
        with suppress(httpx.HTTPError):
            if self._bar is not None:
                update_progress_artifact(self._bar, share, description=said)
                return
            bar = create_progress_artifact(share, description=said)
            assert isinstance(bar, UUID)
            self._bar = bar
