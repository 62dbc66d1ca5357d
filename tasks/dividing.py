"""Divides a teacher's limits among Dask's workers, and again whenever one joins or leaves."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distributed import Client
from prefect.logging import get_run_logger

from potstill.artifacts import ArtifactRef
from potstill.errors import PotstillError, UsageError
from potstill.ledger import open_ledger
from potstill.recipe import Recipe
from potstill.teacher.shares import Share, check_shares
from potstill.teacher.sharing import join_run, plan_of

LOOK_SECONDS = 1.0
"""How often the scheduler is asked who is there."""
WORKERS_SECONDS = 30.0


class Divider:
    """Tells each worker its share. Those that had one are told first, and have come down to it before others begin."""

    def __init__(self, client: Client, recipe: Recipe, prompts: ArtifactRef) -> None:
        self._client = client
        self._teacher, self._logger = recipe.teacher, get_run_logger()  # which a thread of ours would not find
        self._what = (recipe, prompts, plan_of(recipe, prompts).run, open_ledger().id)
        self.threads: dict[str, int] = {}
        """Of the workers that were told."""

    def divide(self) -> None:
        """Errors: `UsageError` for more workers than a cap allows; those of `join_run`, of any worker."""
        there = {at: worker["nthreads"] for at, worker in self._client.scheduler_info(n_workers=-1)["workers"].items()}
        if there.keys() == self.threads.keys():
            return
        before = [address for address in self.threads if address in there]
        joined = [address for address in there if address not in before]
        check_shares(self._teacher, len(there))
        shares = {address: Share(number=n, of=len(there)) for n, address in enumerate([*before, *joined])}
        for group in (before, joined):
            if group:
                self._client.run(_join, *self._what, shares, workers=group)
        self.threads = {address: there[address] for address in shares}

    def follow(self, is_over: threading.Event) -> None:
        """Divide anew until it is over; a worker that died meanwhile is gone at the next look."""
        while not is_over.wait(LOOK_SECONDS):
            try:
                self.divide()
            except (PotstillError, OSError) as error:
                self._logger.warning("the limits were not divided anew: %s", error)


async def _join(*run: Any, dask_worker: Any) -> None:
    *what, shares = run
    await asyncio.to_thread(lambda: join_run(*what, share=shares[dask_worker.address]))


@contextmanager
def dividing(client: Client, recipe: Recipe, prompts: ArtifactRef) -> Iterator[dict[str, int]]:
    """Each worker has its share meanwhile; gives their threads. Errors, before anything is asked: those of `Divider`."""
    divider, is_over, deadline = Divider(client, recipe, prompts), threading.Event(), time.monotonic() + WORKERS_SECONDS
    while not divider.threads:
        divider.divide()
        if time.monotonic() > deadline:
            raise UsageError("no Dask worker has joined the scheduler of POTSTILL_DASK: start some with `dask worker`")
        time.sleep(0.1)
    thread = threading.Thread(target=divider.follow, args=(is_over,), name="dividing", daemon=True)
    thread.start()
    try:
        yield divider.threads
    finally:
        is_over.set()
        thread.join(LOOK_SECONDS)
