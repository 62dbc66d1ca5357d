"""A running teacher: one event loop, one client, one limiter and one budget for a whole run, in a thread of its own.

Any number of threads may hand it batches at once.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from potstill.errors import NotAuthorisedError, TeacherError
from potstill.ledger import Caps, Ledger
from potstill.ledger.entries import NO_CAPS, Purpose
from potstill.ledger.grouping import GroupedLedger
from potstill.ledger.owners import RENEW_SECONDS
from potstill.llm.batches import open_batches
from potstill.llm.batches.base import BatchProtocol
from potstill.llm.client import ChatClient
from potstill.llm.endpoint import endpoint_of
from potstill.llm.keys import LoadBlock
from potstill.llm.retrying import RetryPolicy
from potstill.teacher.asking import Asker
from potstill.teacher.batching import BatchAsker
from potstill.teacher.outcome import BatchReport, Step, Tally
from potstill.teacher.plan import TeachPlan, rates_of
from potstill.teacher.shares import WHOLE, Share
from potstill.teacher.unfinished import are_at_provider, has_open_batches
from potstill.teacher.watching import BatchWatch

T = TypeVar("T")

LOOK_SECONDS = 2.0
"""How often somebody who waits for answers may say how far they are."""


class TeacherSession:
    """A context manager; `answer` blocks its caller, not the others.

    Args:
        caps: what may be spent by the plan's run over all its resumptions, and by its recipe in this month.
        policy: when one request is asked again.
        purpose: what the ledger calls its attempts.
        load_block: reads the secret block that holds the key, where the teacher names one.
        share: what this process may take of the teacher's limits.

    Errors: those of `Asker.answer`, and `NotAuthorisedError` at once for a key that is missing or another host's.
    """

    def __init__(
        self,
        plan: TeachPlan,
        ledger: Ledger,
        caps: Caps = NO_CAPS,
        policy: RetryPolicy | None = None,
        purpose: Purpose = "teach",
        load_block: LoadBlock | None = None,
        share: Share = WHOLE,
    ) -> None:
        teacher = plan.teacher
        self._plan = plan
        self._endpoint = endpoint_of(teacher, load_block)
        self._client = ChatClient(
            self._endpoint,
            api_version=teacher.api_version,
            concurrency=teacher.concurrency,
            timeout_seconds=teacher.timeout_seconds,
        )
        self._ledger = GroupedLedger(ledger)
        self._caps = caps
        self._share = share
        self._policy = policy or RetryPolicy()
        self._asker = Asker(
            plan, self._ledger, self._client, caps, self._policy, purpose, collect_held=self._collect_held
        )
        self._callers: set[asyncio.Task[Any]] = set()
        self._is_cancelled = False
        self._watching = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="teacher-session", daemon=True)
        self._heartbeat: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._submit(self._begin()).result()
        except BaseException:
            self._stop_loop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._submit(self._end()).result()
        finally:
            self._stop_loop()

    def answer(
        self,
        rows: range | None = None,
        on_step: Callable[[Step], None] | None = None,
        on_wait: Callable[[], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> BatchReport:
        """Ask for what the ledger does not hold of these rows, all where none are named, and wait.

        `on_step` is told of each step in the session's thread, and must be quick; `on_wait` is called in the caller's,
        every two seconds. An interrupted caller stops its requests. What somebody has handed in as a batch meanwhile is
        waited for, and `say` is told so, in one line.
        """
        wanted = range(len(self._plan.rows)) if rows is None else rows
        tell, report = say or (lambda _: None), on_step or (lambda _: None)
        return self._wait_for(self._cancellable(lambda: self._asker.answer(wanted, report, tell)), on_wait)

    def answer_in_batches(
        self, on_step: Callable[[Step], None] | None = None, say: Callable[[str], None] | None = None
    ) -> BatchReport:
        """The same for all rows in the provider's batches; an interrupted caller leaves them to the provider.

        `say` is told, in one line, what a batch does. Errors: those of `BatchAsker.answer`.
        """
        tell, report = say or (lambda _: None), on_step or (lambda _: None)
        return self._wait_for(self._cancellable(lambda: self._batched(report, tell)))

    def collect_batches(self, say: Callable[[str], None] | None = None) -> None:
        """Wait for the batches at the endpoint that hold answers of this plan: they are nobody's to ask."""
        if has_open_batches(self._plan, self._ledger.ledger):
            tell = say or (lambda _: None)
            self._wait_for(self._cancellable(lambda: self._batched(lambda _: None, tell, only_collect=True)))

    def divide(self, share: Share) -> None:
        """Keep to another share from now on; return once no more is in flight than it allows."""
        self._submit(self._asker.divide(share)).result()

    def cancel(self) -> None:
        """Stop all that is being asked, for whichever caller, once it is closed in the ledger; nothing begins after it."""
        self._submit(self._cancel()).result()

    def _wait_for(self, coroutine: Coroutine[Any, Any, T], on_wait: Callable[[], None] | None = None) -> T:
        future = self._submit(coroutine)
        try:
            while on_wait is not None and not wait([future], LOOK_SECONDS).done:
                on_wait()
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _batched(
        self, on_step: Callable[[Step], None], say: Callable[[str], None], *, only_collect: bool = False
    ) -> BatchReport:
        rates = rates_of(self._plan.teacher, "batch")
        async with self._protocol() as protocol:
            asker = BatchAsker(self._plan, self._ledger.ledger, protocol, self._caps, rates, say)
            if only_collect:
                await asker.collect(on_step)
                return Tally().report()
            return await asker.answer(on_step)

    async def _collect_held(
        self, keys: Sequence[str], say: Callable[[str], None], sleep: Callable[[float], Awaitable[None]]
    ) -> bool:
        """Wait until no batch at the endpoint holds these keys; False where none did."""
        if not await self._ledger.run(are_at_provider, self._plan, self._ledger.ledger, keys):
            return False
        say(f"another run has handed in {len(keys):,} of these prompts as a batch: waiting for it")
        poll_seconds = self._plan.teacher.batch_poll_seconds
        async with self._protocol() as protocol, self._watching:  # one watch, however many wait
            watch = BatchWatch(self._plan, self._ledger.ledger, protocol, say, keys)
            while await self._go_on(watch, keys):
                await sleep(poll_seconds)
        return True

    async def _go_on(self, watch: BatchWatch, keys: Sequence[str]) -> bool:
        """Whether a batch that holds these keys goes on, after a look at it."""
        try:
            return (await watch.look(lambda _: None)).waiting
        except (NotAuthorisedError, TeacherError):
            if await self._ledger.run(are_at_provider, self._plan, self._ledger.ledger, keys):
                raise
            return False  # what it was rejected for is the affair of whoever handed it in

    def _protocol(self) -> AbstractAsyncContextManager[BatchProtocol]:
        return open_batches(self._endpoint, timeout_seconds=self._plan.teacher.timeout_seconds, policy=self._policy)

    async def _cancellable(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What a caller waits for; it ends when the session is cancelled, whatever it is at."""
        if self._is_cancelled:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        self._callers.add(task)
        try:
            return await begin()
        finally:
            self._callers.discard(task)

    async def _cancel(self) -> None:
        self._is_cancelled = True
        callers = list(self._callers)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        await self._asker.cancel()

    async def _begin(self) -> None:
        await self._ledger.run(self._ledger.ledger.close_orphans)
        await self._client.__aenter__()
        if self._share != WHOLE:
            await self._asker.divide(self._share)
        self._heartbeat = asyncio.create_task(self._renew_lease())

    async def _end(self) -> None:
        await self._cancel()
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            with suppress(asyncio.CancelledError):
                await self._heartbeat
        await self._ledger.close()
        await self._client.__aexit__(None, None, None)

    async def _renew_lease(self) -> None:
        """A ledger that fails is noticed by whoever writes what is spent."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            with suppress(Exception):
                await self._ledger.run(self._ledger.ledger.renew_lease)

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
