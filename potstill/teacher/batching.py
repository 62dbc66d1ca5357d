"""Batch mode: answers at half the price within a day, handed in, left to the provider, and collected when they are done.

Every step is in the ledger before the next one: a run may end at any of them, and the same run goes on there.
"""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

from potstill.errors import (
    BudgetReachedError,
    NotAuthorisedError,
    PermanentTeacherError,
    TransientTeacherError,
    UsageError,
)
from potstill.ledger import AttemptPlan, Caps, Ledger
from potstill.ledger.entries import Settlement
from potstill.llm.batches.base import BatchProtocol, Limits, NotCreatedError, TooLarge, custom_id, split
from potstill.llm.messages import ChatRequest, SharedPrefixes, shared_prefix
from potstill.llm.pricing import Rates
from potstill.llm.providers import PROVIDERS, base_url_of
from potstill.teacher.budget import describe_cap
from potstill.teacher.collecting import close_token
from potstill.teacher.mending import in_order
from potstill.teacher.outcome import BatchReport, Step, Tally
from potstill.teacher.plan import CHUNK_ROWS, PlannedAnswer, TeachPlan
from potstill.teacher.unfinished import HELD_ELSEWHERE, is_held_elsewhere
from potstill.teacher.watching import BatchWatch, Look

ROUNDS = 4
"""What a batch leaves without an answer is handed in again, so many times in all. Each further sample in place of a bad
one, which can be asked for only after the one before it, has a round more."""


class Round(NamedTuple):
    """What one look over the whole plan has handed in."""

    submitted: int = 0
    claimed: int = 0
    """Others ask for them right now."""
    no_room: AttemptPlan | None = None
    """A request that the caps do not admit."""
    in_flight: int = 0
    """Requests outside batches, on the same accounts as it, that may still make room."""
    is_cut: bool = False
    """Whether the provider's queue had no place for more batches."""


class _Item(NamedTuple):
    """A request on its way into a batch; its body is made again when it is sent."""

    plan: AttemptPlan
    size: int
    start: int
    """Where the chunk of its row begins."""


class BatchAsker:
    """Asks for a plan's answers in batches.

    Args:
        rates: what a batch costs.
        say: is told, in one line, what a batch does.
        sleep: injected by tests.
    """

    def __init__(
        self,
        plan: TeachPlan,
        ledger: Ledger,
        protocol: BatchProtocol,
        caps: Caps,
        rates: Rates,
        say: Callable[[str], None],
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self._protocol = protocol
        self._limits = protocol.limits
        self._places: int | None = None
        """So many batches at most are handed in at once, since the provider's queue was full."""
        self._caps = caps
        self._rates = rates
        self._say = say
        self._sleep = sleep
        self._provider = PROVIDERS[plan.teacher.provider]
        self._watch = BatchWatch(plan, ledger, protocol, say)
        self._tally = Tally()
        self._on_step: Callable[[Step], None] = lambda _: None

    async def answer(self, on_step: Callable[[Step], None]) -> BatchReport:
        """Hand in what the ledger lacks, wait, collect, and hand in again what is still missing.

        Errors: those of `BatchProtocol`, and `BudgetReachedError` once no batch of the plan runs, no request is in flight
        outside batches, and the next one does not fit.
        """
        self._on_step = on_step
        teacher = self._plan.teacher
        rounds, is_first = 0, True
        while rounds < (1 if teacher.stragglers_online else ROUNDS + teacher.quality_retries):
            limits, answered = self._limits, self._tally.counts["answered"]
            handed_in = await self._submit_missing(rounds, is_first=is_first)
            is_first = False
            if handed_in.submitted == 0 and handed_in.claimed == 0:
                if handed_in.no_room is None:
                    break
                if handed_in.in_flight == 0:
                    raise BudgetReachedError(describe_cap(self._plan, self._ledger, handed_in.no_room, self._caps))
                self._say(f"the budget has no room until some of {handed_in.in_flight:,} requests in flight have ended")
                await self._let_others_end()
                continue
            is_full = await self._wait()
            if handed_in.submitted == 0 and is_held_elsewhere(self._plan, self._ledger):
                self._tally.last_error = HELD_ELSEWHERE
                break
            if handed_in.submitted == 0:  # others ask for them, online perhaps, and may have died meanwhile
                await self._let_others_end()
                continue
            is_smaller = self._limits != limits
            left_out = is_full or handed_in.is_cut or handed_in.no_room is not None
            made_room = left_out and self._tally.counts["answered"] > answered
            rounds += not (is_smaller or made_room)  # what had no place in this round is not asked again
        await self.collect(self._on_step)
        self._count_missing()
        return self._tally.report()

    async def collect(self, on_step: Callable[[Step], None]) -> None:
        """Wait for the batches that hold answers of this plan, and put their results into the ledger."""
        self._on_step = on_step
        while (await self._watch.look(self._count)).waiting:
            await self._sleep(self._plan.teacher.batch_poll_seconds)

    async def _let_others_end(self) -> None:
        """A pause, after which nothing waits for a process that has died."""
        await self._sleep(self._plan.teacher.batch_poll_seconds)
        self._ledger.close_orphans()

    async def _wait(self) -> bool:
        """Wait for all batches that hold answers of this plan, or for the first to end where the queue has no room.

        Returns whether it had none for a batch. One that alone is too large for it is handed in as two. Errors: as
        `BatchWatch.look`, and `TransientTeacherError` where a single request has no room.
        """
        seen = Look(waiting=False)
        while True:
            seen = seen.then(await self._watch.look(self._count))
            has_been_full = self._places is not None or seen.full is not None
            if not seen.waiting or (has_been_full and seen.ended > 0):
                break
            await self._sleep(self._plan.teacher.batch_poll_seconds)
        if seen.full is not None and seen.ended == 0:  # nothing of ours is in its way
            if seen.full.requests == 1:
                said = f"{base_url_of(self._plan.teacher)}: {seen.full.said}: run the same again later"
                raise TransientTeacherError(said)
            self._limits = Limits(seen.full.requests // 2, self._limits.bytes)
        if has_been_full:  # in place of each that has ended, and one more: there may be room again
            self._places = max(seen.ended, 1) + 1
        return seen.full is not None

    def _count(self, step: Step) -> None:
        self._tally.add(step)
        self._tally.counts["answered"] += step.answered
        self._on_step(step)

    async def _submit_missing(self, rounds: int, *, is_first: bool) -> Round:
        done, num_batches = Round(), 0
        for batch in split(self._missing(rounds, is_first=is_first), lambda item: item.size, self._limits):
            if isinstance(batch, TooLarge):
                self._refuse(batch)
                continue
            if num_batches == self._places:
                return done._replace(is_cut=True)
            token = uuid.uuid4().hex[:24]
            wanted = [(item.plan, self._caps) for item in batch]
            name, address = self._plan.teacher.provider, base_url_of(self._plan.teacher)
            admissions = self._ledger.begin_batch(token, name, address, self._plan.run, wanted)
            admitted = {item.plan.answer_key for item, row in zip(batch, admissions, strict=True) if row.attempt_id}
            left_out = [item.plan for item, row in zip(batch, admissions, strict=True) if row.why_not == "no_room"]
            done = Round(
                done.submitted + len(admitted),
                done.claimed + sum(row.why_not == "claimed" for row in admissions),
                done.no_room or next(iter(left_out), None),
                max(done.in_flight, *(row.in_flight for row in admissions)),
            )
            if admitted:
                num_batches += 1
                await self._hand_in(token, admitted, batch[0].start)
        return done

    async def _hand_in(self, token: str, keys: set[str], start: int) -> None:
        """Hand in these answers, the first of which is wanted by the chunk of rows that begins at `start`.

        Errors: those of `BatchProtocol.submit`; where they say that no batch was created, none is waited for.
        """
        self._say(f"handing in a batch of {len(keys):,} requests")
        try:
            state = await self._protocol.submit(self._bodies(token, keys, start), token)
        except (NotAuthorisedError, PermanentTeacherError, NotCreatedError, UsageError) as error:
            close_token(self._ledger, token, str(error))
            raise
        if state.is_certain:
            self._ledger.adopt_batch(token, state.id)

    def _missing(self, rounds: int, *, is_first: bool) -> Iterator[_Item]:
        for start, chunk in zip(count(0, CHUNK_ROWS), in_order(self._plan, self._ledger)):
            standing = self._ledger.look_up(answer.key for answer in chunk)
            wanted = {answer.key: answer for answer in chunk if answer.key in standing.missing}
            for answer in wanted.values():
                if rounds >= ROUNDS + self._num_further(answer):
                    continue
                size = self._size(answer.request)
                yield _Item(self._plan.attempt(answer, size, self._rates), size, start)
            if is_first:
                refused = sum(answer.key in standing.refused for answer in chunk)
                self._tally.counts.update(refused=refused, found=len(chunk) - len(wanted) - refused)
                self._on_step(Step(found=len(chunk) - len(wanted)))

    def _bodies(self, token: str, keys: set[str], start: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """The bodies of these answers, made one at a time; what begins as an earlier one did asks for the prompt cache."""
        left, prefixes = set(keys), SharedPrefixes()
        for chunk in in_order(self._plan, self._ledger, start):
            for answer in chunk:
                if answer.key in left:
                    left.remove(answer.key)
                    is_known = self._plan.teacher.prompt_caching and prefixes.repeats(answer.request)
                    body = self._provider.body(answer.request, cache_prefix=is_known)
                    yield custom_id(token, answer.key[:32]), body
            if not left:
                return

    def _size(self, request: ChatRequest) -> int:
        """Bytes in a batch at most: whether it asks for the prompt cache is known only when it is written."""
        may_ask = self._plan.teacher.prompt_caching and shared_prefix(request) is not None
        return self._protocol.size(self._provider.body(request, cache_prefix=may_ask))

    def _refuse(self, large: TooLarge[_Item]) -> None:
        admission = self._ledger.begin(large.item.plan)
        if admission.attempt_id is not None:
            said = large.failure.message
            self._ledger.settle(Settlement(admission.attempt_id, large.item.plan, "refused", error=said))
            self._tally.counts["refused"] += 1
            self._tally.last_error = said

    def _num_further(self, answer: PlannedAnswer) -> int:
        """Which further sample it is, in place of a bad one; 0 for one that is asked for in any case."""
        return max(0, answer.sample_index + 1 - self._plan.teacher.samples)

    def _count_missing(self) -> None:
        self._tally.counts["refused"] = 0  # what batches refused is known now
        for chunk in in_order(self._plan, self._ledger):
            missing, refused = self._ledger.look_up(answer.key for answer in chunk)
            self._tally.counts["refused"] += sum(answer.key in refused for answer in chunk)
            costs = self._ledger.costs(missing) if missing else {}
            for answer in {answer.key: answer for answer in chunk if answer.key in missing}.values():
                said = costs[answer.key].last_error if answer.key in costs else None
                is_given_up = said is not None and self._ledger.give_up(answer.key, said, ROUNDS)
                is_left = "unmended" if self._num_further(answer) else "unanswered"
                self._tally.counts["refused" if is_given_up else is_left] += 1
                self._tally.last_error = self._tally.last_error or said
