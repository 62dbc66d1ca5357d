"""How far a child is: a line in the run's log and a bar in Prefect's UI."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from tasks.server_errors import SERVER_ERRORS

EVERY_SECONDS = 2.0


class Step(Protocol):
    """What a child says of its progress."""

    @property
    def share(self) -> float:
        """From 0 to 1."""
        ...

    def describe(self) -> str: ...


def watch(key: str) -> Callable[[Step], None]:
    """In a task: a function to tell each step to. It shows one every two seconds, and the last.

    Where the server cannot take a bar, the child goes on without it; the log has every line.
    """
    logger = get_run_logger()
    bar: UUID | None = None
    with suppress(*SERVER_ERRORS):
        drawn = create_progress_artifact(0.0, key=key, description="Has begun")
        assert isinstance(drawn, UUID)
        bar = drawn
    shown = time.monotonic()

    def show(step: Step) -> None:
        nonlocal shown
        if time.monotonic() - shown < EVERY_SECONDS and step.share < 1:
            return
        shown = time.monotonic()
        logger.info("%s: %s", key, step.describe())
        if bar is not None:
            with suppress(*SERVER_ERRORS):
                update_progress_artifact(bar, 100 * step.share, description=step.describe())

    return show
