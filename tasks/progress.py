"""How far a child is: a line in the run's log and a bar in Prefect's UI."""

import time
from collections.abc import Callable
from typing import Protocol
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

EVERY_SECONDS = 2.0


class Step(Protocol):
    """What a child says of its progress."""

    @property
    def share(self) -> float:
        """From 0 to 1."""
        ...

    def describe(self) -> str: ...


def watch(key: str) -> Callable[[Step], None]:
    """In a task: a function to tell each step to. It shows one every two seconds, and the last."""
    logger = get_run_logger()
    bar = create_progress_artifact(0.0, key=key, description="Has begun")
    assert isinstance(bar, UUID)
    shown = time.monotonic()

    def show(step: Step) -> None:
        nonlocal shown
        if time.monotonic() - shown < EVERY_SECONDS and step.share < 1:
            return
        shown = time.monotonic()
        logger.info("%s: %s", key, step.describe())
        update_progress_artifact(bar, 100 * step.share, description=step.describe())

    return show
