"""Whether a batch on a Dask worker may go on."""

import time
from collections.abc import Callable
from concurrent.futures import CancelledError

from potstill.errors import UsageError
from potstill.recipe import Recipe
from potstill.teacher.sharing import share_of, stop_run

SHARE_SECONDS = 120.0
"""So long may a worker that has joined wait for its share."""
GOING_ON = {"executing", "long-running"}


def begin_batch(recipe: Recipe, run: str) -> Callable[[], None]:
    """In a batch, before it asks: wait for this process's share of the limits.

    Returns what raises `CancelledError` once nobody wants the batch any more: Dask cannot stop what runs in a thread.
    """
    if recipe.compute.teach == "threads":
        return lambda: None
    from distributed import Status, get_worker

    try:
        worker = get_worker()
    except ValueError:  # in a thread of the run: there is nothing left to ask
        return lambda: None
    key = worker.get_current_task()

    def check() -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state not in GOING_ON or worker.status in {Status.closing, Status.closed}:
            stop_run(run)
            raise CancelledError("the run that wanted this batch is gone or was cancelled: nothing further is asked")

    deadline = time.monotonic() + SHARE_SECONDS
    while share_of(run) is None:
        check()
        if time.monotonic() > deadline:
            raise UsageError(f"Dask worker {worker.address} got no share of the teacher's limits: see the run's log")
        time.sleep(0.1)
    check()
    return check
