"""Group commits: what the requests of one event loop write at about the same time is one transaction.

A transaction costs about as much for one row as for fifty, and it may not block the loop: it runs in a thread.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

from potstill.ledger.database import is_fault_of_data
from potstill.ledger.entries import Admission, AttemptPlan, Caps, Settlement, Standing
from potstill.ledger.ledger import Ledger

T = TypeVar("T")
RETRY_SECONDS = 300.0
"""A database that fails is asked again for so long, to keep what was paid for: a failover takes less. What wants to begin
fails at once, or waits: nothing is sent meanwhile."""
LAST_SECONDS = 3.0
"""The same, from when somebody wants to leave."""
RETRY_PAUSE_SECONDS = 0.5
LINGER_SECONDS = 0.005
"""An answer counts only after its group is committed, so this delays it."""

log = logging.getLogger(__name__)


class GroupedLedger:
    """A ledger as coroutines on one event loop see it. Who awaits a method goes on once what it wrote is committed.

    Args:
        linger_seconds: how long the first of a group waits for others.
        executor: where transactions run; None for a thread of its own.

    Errors: SQLAlchemy's, to every waiter of a group whose transaction failed.
    """

    def __init__(
        self, ledger: Ledger, linger_seconds: float = LINGER_SECONDS, executor: Executor | None = None
    ) -> None:
        self.ledger = ledger
        self._linger_seconds = linger_seconds
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._wanted: list[tuple[AttemptPlan, Caps, asyncio.Future[Admission]]] = []
        self._settlements: list[tuple[Settlement, asyncio.Future[None]]] = []
        self._commit: asyncio.Task[None] | None = None
        self._give_up_at = math.inf

    async def begin(self, plan: AttemptPlan, caps: Caps) -> Admission:
        """As `Ledger.begin`."""
        future: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
        self._wanted.append((plan, caps, future))
        self._wake()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and (attempt_id := future.result().attempt_id) is not None:
                self._give_back(attempt_id, plan)
            raise

    def settle(self, settlement: Settlement) -> asyncio.Future[None]:
        """As `Ledger.settle`; it is written even where nobody waits for it, or no longer does."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody asks for it
        self._settlements.append((settlement, future))
        self._wake()
        return future

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a blocking method of the ledger in the ledger's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    async def look_up(self, keys: Iterable[str]) -> Standing:
        """As `Ledger.look_up`."""
        return await self.run(self.ledger.look_up, list(keys))

    async def is_claimed(self, key: str) -> bool:
        """As `Ledger.is_claimed`."""
        return await self.run(self.ledger.is_claimed, key)

    async def flush(self) -> None:
        """Return once all is written that waits, or left to the ledger where the database fails for too long."""
        self._give_up_at = asyncio.get_running_loop().time() + LAST_SECONDS
        try:
            while self._commit is not None:
                await asyncio.wait([self._commit])
        finally:
            self._give_up_at = math.inf

    async def close(self) -> None:
        """Write what still waits; the ledger itself stays open."""
        await self.flush()
        self._executor.shutdown()

    def _wake(self) -> None:
        if self._commit is None:
            self._commit = asyncio.create_task(self._write_groups())

    async def _write_groups(self) -> None:
        try:
            await asyncio.sleep(self._linger_seconds)
            while self._wanted or self._settlements:
                await self._write_group()
        finally:
            self._commit = None

    async def _write_group(self) -> None:
        wanted, self._wanted = self._wanted, []
        settlements = self._take_settlements()
        begins = [(plan, caps) for plan, caps, future in wanted if not future.cancelled()]
        waiting = [future for _, _, future in wanted if not future.cancelled()]
        try:
            admissions = await self.run(self.ledger.write, [entry for entry, _ in settlements], begins)
        except Exception as error:  # noqa: BLE001 - each waiter raises it where its request is
            if settlements and is_fault_of_data(error):  # theirs, perhaps: who begins is tried once more, without them
                self._wanted = wanted + self._wanted
            else:
                _fail(waiting, error)
            await self._settle_later(settlements, error)
            return
        _succeed(settlements)
        for (plan, _), admission, future in zip(begins, admissions, waiting, strict=True):
            if not future.done():
                future.set_result(admission)
            elif admission.attempt_id is not None:
                self._give_back(admission.attempt_id, plan)

    async def _settle_later(self, held: list[tuple[Settlement, asyncio.Future[None]]], error: Exception) -> None:
        """Try again to write what was paid for, one by one where one of them is at fault."""
        if not held:
            return
        now = asyncio.get_running_loop().time
        deadline = now() + RETRY_SECONDS
        is_told = False
        pause = 0.0 if is_fault_of_data(error) else RETRY_PAUSE_SECONDS
        while now() < min(deadline, self._give_up_at):
            if pause and not is_told:
                log.warning(
                    "%s; it is tried again for %.0f minutes, and nothing is sent", _say(error), RETRY_SECONDS / 60
                )
                is_told = True
            await asyncio.sleep(pause)
            pause = RETRY_PAUSE_SECONDS
            held += self._take_settlements()
            entries = [entry for entry, _ in held]
            try:
                if is_fault_of_data(error):
                    await self.run(self.ledger.settle_each, entries)
                else:
                    await self.run(self.ledger.write, entries, [])
            except Exception as again:  # noqa: BLE001 - the last one is raised
                error = again
            else:
                _succeed(held)
                return
        self._give_up(held, error)

    def _give_up(self, held: list[tuple[Settlement, asyncio.Future[None]]], error: Exception) -> None:
        """Leave what was paid for to the ledger, and let nothing begin."""
        held += self._take_settlements()
        wanted, self._wanted = self._wanted, []
        self.ledger.leave(entry for entry, _ in held)
        log.warning("%s; %d requests stay open in it until this process writes again, or ends", _say(error), len(held))
        _fail([future for _, future in held], error)
        _fail([future for _, _, future in wanted], error)

    def _take_settlements(self) -> list[tuple[Settlement, asyncio.Future[None]]]:
        taken, self._settlements = self._settlements, []
        return taken

    def _give_back(self, attempt_id: int, plan: AttemptPlan) -> None:
        """Close an attempt whose sender was cancelled while it was begun."""
        self.settle(Settlement(attempt_id, plan, "failed", error="cancelled before it was sent"))


def _succeed(settlements: Iterable[tuple[Settlement, asyncio.Future[None]]]) -> None:
    for _, future in settlements:
        if not future.done():
            future.set_result(None)


def _fail(futures: Iterable[asyncio.Future[Any]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)


def _say(error: Exception) -> str:
    return f"the ledger cannot be written: {str(error.__cause__ or error).partition(chr(10))[0]}"
