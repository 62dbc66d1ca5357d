"""Asks for answers, each until it stands in the ledger: workers that draw prompts, send, and ask again where that may help."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from potstill.errors import PermanentTeacherError, TransientTeacherError
from potstill.ledger import Ledger
from potstill.ledger.entries import Caps, Purpose
from potstill.ledger.grouping import GroupedLedger
from potstill.llm.client import ChatClient
from potstill.llm.retrying import PROBE_TIMEOUTS, RetryPolicy, UnansweredError, retrying
from potstill.teacher.mending import retries_wanted
from potstill.teacher.outcome import (
    BatchReport,
    DoubtfulRefusalError,
    PromptAtFaultError,
    RefusedError,
    Step,
    Tally,
    refusal,
)
from potstill.teacher.plan import PlannedAnswer, TeachPlan
from potstill.teacher.sending import Sender
from potstill.teacher.shares import Share, Slots
from potstill.teacher.stopping import Stop
from potstill.teacher.unfinished import HELD_ELSEWHERE
from potstill.teacher.wanted import Listed, Missing, OnStep, look_up

PROBES = 3
"""So many prompts may fail, one after the other, at an endpoint that does reply, before it counts as out of order."""
WORKERS_A_SLOT = 2
"""A request that waits to be asked again gives its slot to another one."""
FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.02, 1.0
"""How often somebody who waits for another's answer looks for it."""
SLOW_LOOK_SECONDS = 0.5
"""Who has waited this long between two looks makes sure that the other one still lives."""

HELD = "held"
"""A provider's batch holds it: nobody who asks online is working at it."""

Say = Callable[[str], None]
CollectHeld = Callable[[Sequence[str], Say, Callable[[float], Awaitable[None]]], Awaitable[bool]]
"""Waits, by this pause, until no batch at the endpoint holds these keys; False where none did."""


async def _collect_nothing(*_: object) -> bool:
    return False


class Asker:
    """The asynchronous core of a session; everything in it runs on one event loop.

    Args:
        caps: what may be spent by the plan's run, and by its recipe in this month.
        clock: seconds; that of the event loop.
        collect_held: looks after batches that hold what is asked for.
    """

    def __init__(
        self,
        plan: TeachPlan,
        ledger: GroupedLedger,
        client: ChatClient,
        caps: Caps,
        policy: RetryPolicy,
        purpose: Purpose = "teach",
        clock: Callable[[], float] = time.monotonic,
        collect_held: CollectHeld = _collect_nothing,
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self._address = client.base_url
        self._policy = policy
        self._collect_held = collect_held
        self._stop = Stop()
        self._sender = Sender(plan, ledger, client, caps, self._stop, purpose, clock)
        self._slots = Slots(plan.teacher.concurrency)
        self._first = asyncio.Lock()
        self._is_reached = False
        self._failed_probes = 0
        self._workers: set[asyncio.Task[None]] = set()

    async def divide(self, share: Share) -> None:
        """Keep to a share of the limits; return once no more is in flight than it allows."""
        self._sender.divide(share)
        await self._slots.resize(share.part(self._plan.teacher.concurrency))

    async def answer(self, rows: range, on_step: OnStep, say: Say = lambda _: None) -> BatchReport:
        """Ask for what the ledger does not hold of these rows' answers; `say` is told what is waited for.

        Errors: `NotAuthorisedError`, `BudgetReachedError`, `PermanentTeacherError` and, where the endpoint cannot be
        reached at all, `TransientTeacherError`; `PotstillError` where the ledger cannot be written. Each stops every
        batch; what was answered until then is kept.
        """
        batch = _Batch(on_step)
        await self._ask_all(Missing(self._plan, self._ledger, rows, batch.tally, on_step), batch, say)
        doubtful, batch.doubtful = batch.doubtful, []
        if doubtful and not self._sender.has_replied:
            await self._stop_refusing(batch.tally.last_error or "")
            self._stop.check()
        await self._ask_all(Listed(doubtful), batch, say)  # it answers by now: what it says of these counts
        for _ in range(self._plan.teacher.quality_retries):
            await self._ask_all(Listed(await self._bad_ones(rows)), batch, say)
        batch.tally.counts["unanswered"] += len(batch.doubtful)
        return batch.tally.report()

    async def _bad_ones(self, rows: range) -> list[PlannedAnswer]:
        """A further sample of each prompt that has only answers which must not be trained on."""
        wanted: dict[str, PlannedAnswer] = {}
        for chunk in self._plan.chunks(rows.start, rows.stop):
            more = await self._ledger.run(_bad_ones, self._plan, self._ledger.ledger, chunk)
            wanted |= {answer.key: answer for answer in more}
        return list(wanted.values())

    async def cancel(self) -> None:
        """Stop all that is being asked, for whichever batch, once it is closed in the ledger."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self._ledger.flush()

    async def _ask_all(self, wanted: Listed, batch: "_Batch", say: Say) -> None:
        """Ask for each, and for what a provider's batch holds once that has ended."""
        is_in_reach = True
        while held := await self._ask_each(wanted, batch):
            if not is_in_reach:
                batch.tally.counts["unanswered"] += len(held)
                batch.tally.last_error = HELD_ELSEWHERE
                return
            is_in_reach = await self._collect_held([answer.key for answer in held], say, self._stop.sleep)
            wanted = Listed(await look_up(self._ledger, held, batch.tally, batch.on_step))

    async def _ask_each(self, wanted: Listed, batch: "_Batch") -> list[PlannedAnswer]:
        """Ask for each that no provider's batch holds, and return the others."""
        batch.held = []
        number = min(WORKERS_A_SLOT * self._plan.teacher.concurrency, wanted.at_most)
        workers = [asyncio.create_task(self._work(wanted, batch)) for _ in range(number)]
        self._workers.update(workers)
        try:
            results = await asyncio.gather(*workers, return_exceptions=True)
        except asyncio.CancelledError:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            raise
        finally:
            self._workers.difference_update(workers)
        self._stop.check()
        for unexpected in results:
            if unexpected is not None:
                raise unexpected
        return batch.held

    async def _work(self, wanted: Listed, batch: "_Batch") -> None:
        """Until the endpoint has answered anything, and again where it refuses everything, one asks alone."""
        while (answer := await self._draw(wanted)) is not None:
            if self._is_reached:
                await self._ask(answer, self._retry, batch)
                continue
            async with self._first:
                if is_probe := not self._is_reached:
                    is_neighbour_bad = self._failed_probes > 0 or self._sender.doubts.are_many
                    probe = wanted.exchange(answer) if is_neighbour_bad else answer
                    await self._ask(probe, self._reach, batch)
            if not is_probe:
                await self._ask(answer, self._retry, batch)

    async def _ask(
        self, answer: PlannedAnswer, ask: Callable[[PlannedAnswer, OnStep], Awaitable[str]], batch: "_Batch"
    ) -> None:
        """Ask for one, and count what became of it."""
        tally = batch.tally
        try:
            sent = await ask(answer, batch.tell)
            if sent == HELD:
                batch.held.append(answer)
            else:
                tally.counts[sent] += 1
        except DoubtfulRefusalError as error:
            tally.last_error = str(error)
            batch.doubtful.append(answer)
        except RefusedError as error:
            tally.last_error = str(error)
            tally.counts["refused"] += 1
        except UnansweredError as error:
            tally.last_error = str(error)
            tally.counts["unanswered"] += 1
        else:
            return
        if self._is_reached and self._sender.doubts.are_many:
            self._is_reached, self._failed_probes = False, 0

    async def _give_up(self, answer: PlannedAnswer, error: UnansweredError) -> bool:
        """Whether a prompt that has no answer after all its attempts is put aside; else it is left for the next run."""
        give_up = partial(self._ledger.ledger.give_up, is_failing=self._sender.is_failing)
        with self._stop.where_the_ledger_fails(self._ledger.ledger.url):
            is_given_up = await self._ledger.run(give_up, answer.key, error.message, self._policy.attempts)
        if is_given_up:
            self._sender.acquit(answer.key)
        return is_given_up

    async def _draw(self, wanted: Listed) -> PlannedAnswer | None:
        """The next answer that is wanted. A ledger that cannot be read stops all, not one worker."""
        with self._stop.where_the_ledger_fails(self._ledger.ledger.url):
            return await wanted.draw()

    async def _reach(self, answer: PlannedAnswer, on_step: OnStep) -> str:
        """One request goes alone, so that an endpoint that is down, or set up wrongly, is not stormed.

        Where the endpoint replies and only the answer cannot be used, the fault may be the prompt's: the next one, taken
        from anywhere among those that are left, tries.
        """
        try:
            sent = await self._retry(answer, on_step, timeouts=PROBE_TIMEOUTS)
        except UnansweredError as error:
            self._failed_probes += 1
            if not self._sender.has_replied or self._failed_probes == PROBES:
                said = f"no answer from {self._address}: {error}. Run the same again when it is up"
                self._stop.because(TransientTeacherError(said))
            raise
        except PromptAtFaultError:
            self._is_reached = True
            raise
        except RefusedError as error:
            self._failed_probes += 1
            if self._failed_probes == PROBES:
                await self._stop_refusing(str(error))
            raise
        self._is_reached = sent == "answered"
        return sent

    async def _retry(self, answer: PlannedAnswer, on_step: OnStep, timeouts: int | None = None) -> str:
        try:
            async for attempt in retrying(self._policy, self._stop.sleep, timeouts=timeouts):
                with attempt:
                    return await self._send(answer, on_step)
        except UnansweredError as error:
            if await self._give_up(answer, error):
                raise PromptAtFaultError(error.message) from None
            raise
        raise AssertionError("the loop ends by an answer or by an error")

    async def _send(self, answer: PlannedAnswer, on_step: OnStep) -> str:
        """One attempt in a slot; where somebody else asks for the same right now, their answer is waited for.

        What is in a batch is `HELD`: its process may be gone, and then nobody else waits for it.
        """
        look_seconds = FIRST_LOOK_SECONDS
        while True:
            async with self._slots:
                sent = await self._sender.send(answer, on_step)
            if sent != "claimed":
                return sent
            while await self._ledger.is_claimed(answer.key):  # which takes no turn of the pace
                if await self._ledger.run(self._ledger.ledger.batches_holding, [answer.key]):
                    return HELD
                await self._stop.sleep(look_seconds)
                look_seconds = min(look_seconds * 1.5, LONGEST_LOOK_SECONDS)
                if look_seconds > SLOW_LOOK_SECONDS:
                    await self._ledger.run(self._ledger.ledger.close_orphans)

    async def _stop_refusing(self, said: str) -> None:
        """No prompt is refused for good by an endpoint that refuses them all."""
        with self._stop.where_the_ledger_fails(self._ledger.ledger.url):
            await self._ledger.run(self._ledger.ledger.take_back, self._sender.doubts.keys)
        self._stop.because(PermanentTeacherError(refusal(self._address, said)))


class _Batch:
    """What one batch has come to while it is asked for."""

    def __init__(self, on_step: OnStep) -> None:
        self.tally = Tally()
        self.held: list[PlannedAnswer] = []
        """In a provider's batch."""
        self.doubtful: list[PlannedAnswer] = []
        """Refused, perhaps through no fault of theirs."""
        self.on_step = on_step

    def tell(self, step: Step) -> None:
        self.tally.add(step)
        self.on_step(step)


def _bad_ones(plan: TeachPlan, ledger: Ledger, chunk: list[PlannedAnswer]) -> list[PlannedAnswer]:
    return list(retries_wanted(plan, ledger, chunk))
