"""Asks for answers, each until it stands in the ledger: workers that draw prompts, send, and ask again where that may help."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial

from potstill.errors import PermanentTeacherError, TransientTeacherError
from potstill.ledger import Ledger
from potstill.ledger.entries import Caps, Purpose
from potstill.ledger.grouping import GroupedLedger
from potstill.ledger.spend import add_up
from potstill.llm.client import ChatClient
from potstill.llm.retrying import PROBE_TIMEOUTS, RetryPolicy, UnansweredError, retrying
from potstill.teacher.mending import retries_wanted
from potstill.teacher.outcome import BatchReport, RefusedError, Step, Tally
from potstill.teacher.plan import CHUNK_ROWS, PlannedAnswer, TeachPlan
from potstill.teacher.sending import Sender
from potstill.teacher.shares import Share, Slots
from potstill.teacher.stopping import Stop
from potstill.teacher.unfinished import HELD_ELSEWHERE

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

OnStep = Callable[[Step], None]
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
        tally = Tally()
        early: list[PlannedAnswer] = []
        await self._ask_all(_Missing(self._plan, self._ledger, rows, tally, on_step), tally, early, on_step, say)
        if early and self._sender.has_replied:  # it answers by now: what it says of these counts
            await self._ask_all(_Listed(early), tally, [], on_step, say)
        elif early:
            self._stop_refusing(tally.last_error or "")
            self._stop.check()
        for _ in range(self._plan.teacher.quality_retries):
            await self._ask_all(_Listed(await self._bad_ones(rows)), tally, [], on_step, say)
        return tally.report()

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

    async def _ask_all(
        self, wanted: "_Missing | _Listed", tally: Tally, early: list[PlannedAnswer], on_step: OnStep, say: Say
    ) -> None:
        """Ask for each, and for what a batch holds once that has ended; `early`: see `_ask_each`."""
        is_in_reach = True
        while held := await self._ask_each(wanted, tally, early, on_step):
            if not is_in_reach:
                tally.counts["unanswered"] += len(held)
                tally.last_error = HELD_ELSEWHERE
                return
            is_in_reach = await self._collect_held([answer.key for answer in held], say, self._stop.sleep)
            wanted = _Listed(await _look_up(self._ledger, held, tally, on_step))

    async def _ask_each(
        self, wanted: "_Missing | _Listed", tally: Tally, early: list[PlannedAnswer], on_step: OnStep
    ) -> list[PlannedAnswer]:
        """Ask for each that no batch holds, and return the others.

        `early` collects what was refused before the endpoint had answered anything.
        """
        held: list[PlannedAnswer] = []
        number = min(WORKERS_A_SLOT * self._plan.teacher.concurrency, wanted.at_most)
        workers = [asyncio.create_task(self._work(wanted, tally, early, held, on_step)) for _ in range(number)]
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
        return held

    async def _work(
        self,
        wanted: "_Missing | _Listed",
        tally: Tally,
        early: list[PlannedAnswer],
        held: list[PlannedAnswer],
        on_step: OnStep,
    ) -> None:
        def tell(step: Step) -> None:
            tally.add(step)
            on_step(step)

        while (answer := await self._draw(wanted)) is not None:
            try:
                sent = await self._ask(answer, tell)
                if sent == HELD:
                    held.append(answer)
                else:
                    tally.counts[sent] += 1
            except RefusedError as error:
                tally.last_error = str(error)
                if error.is_early:
                    early.append(answer)
                else:
                    tally.counts["refused"] += 1
            except UnansweredError as error:
                tally.last_error = str(error)
                tally.counts["unanswered"] += 1

    async def _give_up(self, answer: PlannedAnswer, error: UnansweredError) -> bool:
        """Whether a prompt that has no answer after all its attempts is put aside; else it is left for the next run."""
        give_up = partial(self._ledger.ledger.give_up, is_failing=self._sender.is_failing)
        with self._stop.where_the_ledger_fails(self._ledger.ledger.url):
            is_given_up = await self._ledger.run(give_up, answer.key, error.message, self._policy.attempts)
        if is_given_up:
            self._sender.acquit(answer.key)
        return is_given_up

    async def _draw(self, wanted: "_Missing | _Listed") -> PlannedAnswer | None:
        """The next answer that is wanted. A ledger that cannot be read stops all, not one worker."""
        with self._stop.where_the_ledger_fails(self._ledger.ledger.url):
            return await wanted.draw()

    async def _ask(self, answer: PlannedAnswer, on_step: OnStep) -> str:
        if not self._is_reached:
            async with self._first:
                if not self._is_reached:
                    return await self._reach(answer, on_step)
        return await self._retry(answer, on_step)

    async def _reach(self, answer: PlannedAnswer, on_step: OnStep) -> str:
        """The first request goes alone, so that an endpoint that is down is not stormed.

        Where the endpoint replies and only the answer cannot be used, the fault may be the prompt's: the next one tries.
        """
        try:
            sent = await self._retry(answer, on_step, timeouts=PROBE_TIMEOUTS)
        except UnansweredError as error:
            self._failed_probes += 1
            if not self._sender.has_replied or self._failed_probes == PROBES:
                said = f"no answer from {self._address}: {error}. Run the same again when it is up"
                self._stop.because(TransientTeacherError(said))
            raise
        except RefusedError as error:
            self._failed_probes += 1
            self._is_reached = self._sender.has_replied
            if not self._is_reached and self._failed_probes == PROBES:
                self._stop_refusing(str(error))
            raise
        self._is_reached = self._sender.has_replied
        return sent

    async def _retry(self, answer: PlannedAnswer, on_step: OnStep, timeouts: int | None = None) -> str:
        try:
            async for attempt in retrying(self._policy, self._stop.sleep, timeouts=timeouts):
                with attempt:
                    return await self._send(answer, on_step)
        except UnansweredError as error:
            if await self._give_up(answer, error):
                raise RefusedError(error.message) from None
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

    def _stop_refusing(self, said: str) -> None:
        refusal = f"{self._address} refuses every prompt: {said}. Check key, model and base_url"
        self._stop.because(PermanentTeacherError(refusal))


def _bad_ones(plan: TeachPlan, ledger: Ledger, chunk: list[PlannedAnswer]) -> list[PlannedAnswer]:
    return list(retries_wanted(plan, ledger, chunk))


async def _look_up(
    ledger: GroupedLedger, chunk: Sequence[PlannedAnswer], tally: Tally, on_step: OnStep
) -> list[PlannedAnswer]:
    """What of these is to be asked for; the others are counted."""
    standing = await ledger.look_up(answer.key for answer in chunk)
    ready = [answer for answer in chunk if answer.key in standing.missing]
    asked = {answer.key: answer for answer in ready}  # a prompt that stands in two rows is asked once
    refused = sum(answer.key in standing.refused for answer in chunk)
    done = len(chunk) - len(asked)
    tally.counts.update(refused=refused, found=done - refused)
    if done:
        on_step(Step(found=done))
    return list(asked.values())


class _Missing:
    """Draws, chunk by chunk, what the ledger lacks; any number of workers share it."""

    def __init__(self, plan: TeachPlan, ledger: GroupedLedger, rows: range, tally: Tally, on_step: OnStep) -> None:
        self._plan = plan
        self._rows = rows
        self._ledger = ledger
        self._tally = tally
        self._on_step = on_step
        self._chunks: AsyncIterator[list[PlannedAnswer]] = self._read()
        self._ready: deque[PlannedAnswer] = deque()
        self._refill = asyncio.Lock()
        self.at_most = len(rows) * plan.teacher.samples

    async def draw(self) -> PlannedAnswer | None:
        """The next one; None at the end."""
        while not self._ready:
            async with self._refill:
                if self._ready:
                    break
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    return None
                self._ready.extend(await _look_up(self._ledger, chunk, self._tally, self._on_step))
        return self._ready.popleft()

    async def _read(self) -> AsyncIterator[list[PlannedAnswer]]:
        """A run that is resumed begins about where it stopped: what it has answered is looked up last."""
        start, stop = self._rows.start, self._rows.stop
        middle = start
        if len(self._rows) > CHUNK_ROWS:
            spent = add_up(await self._ledger.run(self._ledger.ledger.spend, self._plan.run))
            middle = min(start + spent.answered // self._plan.teacher.samples, stop)
        for begin, end in ((middle, stop), (start, middle)):
            for chunk in self._plan.chunks(begin, end):
                yield chunk


class _Listed:
    def __init__(self, answers: list[PlannedAnswer]) -> None:
        self._answers: Iterator[PlannedAnswer] = iter(answers)
        self.at_most = len(answers)

    async def draw(self) -> PlannedAnswer | None:
        return next(self._answers, None)
