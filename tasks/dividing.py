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
        self._recipe = recipe
        self._what = (recipe, prompts, plan_of(recipe, prompts).run, open_ledger().id)
        self._told: list[str] = []

    def divide(self) -> None:
        """Errors: `UsageError` for more workers than a cap allows; those of `join_run`, of any worker."""
        there = list(self._client.scheduler_info(n_workers=-1)["workers"])
        before = [address for address in self._told if address in there]
        joined = [address for address in there if address not in before]
        if not there or (before == self._told and not joined):
            return
        check_shares(self._recipe.teacher, len(there))
        shares = {address: Share(number=n, of=len(there)) for n, address in enumerate([*before, *joined])}
        for group in (before, joined):
            if group:
                self._client.run(_join, *self._what, shares, workers=group)
        self._told = list(shares)

    def wait_for_workers(self) -> int:
        """Divide among the first ones; returns how many there are."""
        deadline = time.monotonic() + WORKERS_SECONDS
        while not self._told:
            self.divide()
            if time.monotonic() > deadline:
                raise UsageError(f"no Dask worker has joined {self._client.scheduler}: start one with `dask worker`")
            time.sleep(0.1)
        return len(self._told)


async def _join(
    recipe: Recipe, prompts: ArtifactRef, run: str, ledger_id: str, shares: dict[str, Share], dask_worker: Any
) -> None:
    await asyncio.to_thread(join_run, recipe, prompts, run, ledger_id, shares[dask_worker.address])


@contextmanager
def dividing(client: Client, recipe: Recipe, prompts: ArtifactRef) -> Iterator[None]:
    """Each worker has its share meanwhile. Errors, before anything is asked: those of `Divider`."""
    divider, is_over, logger = Divider(client, recipe, prompts), threading.Event(), get_run_logger()
    logger.info("the teacher's limits are divided among %d Dask workers", divider.wait_for_workers())

    def follow() -> None:
        while not is_over.wait(LOOK_SECONDS):
            try:
                divider.divide()
            except (PotstillError, OSError) as error:  # one that died meanwhile is gone at the next look
                logger.warning("the limits were not divided anew: %s", error)

    thread = threading.Thread(target=follow, name="dividing", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(LOOK_SECONDS)
