"""Batch mode: answers at half the price within a day, handed in, left to the provider, and collected when they are done.

Every step is in the ledger before the next one: a run may end at any of them, and the same run goes on there.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from potstill.errors import BudgetReachedError, NotAuthorisedError, TeacherError, TransientTeacherError
from potstill.ledger import AttemptPlan, Caps, Ledger
from potstill.ledger.batches import BatchRow
from potstill.ledger.entries import Settlement
from potstill.llm.batches.base import BatchProtocol, BatchState, Limits, TooLarge, custom_id, is_of, split
from potstill.llm.pricing import Rates
from potstill.llm.providers import PROVIDERS
from potstill.teacher.budget import describe_cap
from potstill.teacher.collecting import close_batch, close_rejected, close_unsubmitted
from potstill.teacher.mending import retries_wanted
from potstill.teacher.outcome import BatchReport, Step, Tally
from potstill.teacher.plan import PlannedAnswer, TeachPlan

ROUNDS = 4
"""What a batch leaves without an answer is handed in again, so many times in all."""
PATIENCE_SECONDS = 1800.0
"""So long may an endpoint fail while a batch is waited for: the batch itself goes on."""


class Round(NamedTuple):
    """What one look over the whole plan has handed in."""

    submitted: int = 0
    claimed: int = 0
    """Others ask for them right now."""
    no_room: AttemptPlan | None = None
    """A request that the caps do not admit."""


class _Item(NamedTuple):
    """A request on its way into a batch; its body is made again when it is sent."""

    plan: AttemptPlan
    size: int
    name: str


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
        teacher = plan.teacher
        self._plan = plan
        self._ledger = ledger
        self._protocol = protocol
        self._limits = protocol.limits
        self._caps = caps
        self._rates = rates
        self._say = say
        self._sleep = sleep
        self._provider = PROVIDERS[teacher.provider]
        self._base_url = (teacher.base_url or self._provider.default_base_url or "").rstrip("/")
        self._tally = Tally()
        self._on_step: Callable[[Step], None] = lambda _: None

    async def answer(self, on_step: Callable[[Step], None]) -> BatchReport:
        """Hand in what the ledger lacks, wait, collect, and hand in again what is still missing.

        Errors: those of `BatchProtocol`, and `BudgetReachedError` once no batch runs and the next request does not fit.
        """
        self._on_step = on_step
        await self._finish_open()
        rounds, is_first = 0, True
        while rounds < (1 if self._plan.teacher.stragglers_online else ROUNDS):
            limits, answered = self._limits, self._tally.counts["answered"]
            handed_in = await self._submit_missing(is_first=is_first)
            is_first = False
            if handed_in.submitted == 0 and handed_in.claimed > 0:
                await self._sleep(self._plan.teacher.batch_poll_seconds)
                self._ledger.close_orphans()  # who claimed them may have died meanwhile
                await self._finish_open()
                continue
            if handed_in.submitted == 0:
                if handed_in.no_room is not None:
                    raise BudgetReachedError(describe_cap(self._plan, self._ledger, handed_in.no_room, self._caps))
                break
            await self._finish_open()
            is_smaller = self._limits != limits
            made_room = handed_in.no_room is not None and self._tally.counts["answered"] > answered
            rounds += not (is_smaller or made_room)  # what had no place in this round is not asked again
        self._count_missing()
        return self._tally.report()

    async def collect(self, on_step: Callable[[Step], None]) -> None:
        """Wait for what was handed in, and put its results into the ledger."""
        self._on_step = on_step
        await self._finish_open()

    async def _submit_missing(self, *, is_first: bool) -> Round:
        done = Round()
        for batch in split(self._missing(is_first=is_first), lambda item: item.size, self._limits):
            if isinstance(batch, TooLarge):
                self._refuse(batch)
                continue
            token = uuid.uuid4().hex[:24]
            wanted = [(item.plan, self._caps) for item in batch]
            run, name = self._plan.run, self._provider.name
            admissions = self._ledger.begin_batch(token, name, self._base_url, run, wanted)
            admitted = {item.plan.answer_key for item, row in zip(batch, admissions, strict=True) if row.attempt_id}
            left_out = [item.plan for item, row in zip(batch, admissions, strict=True) if row.why_not == "no_room"]
            done = Round(
                done.submitted + len(admitted),
                done.claimed + sum(row.why_not == "claimed" for row in admissions),
                done.no_room or next(iter(left_out), None),
            )
            if admitted:
                self._say(f"handing in a batch of {len(admitted):,} requests")
                state = await self._protocol.submit(self._bodies(token, admitted), token)
                if state.is_certain:
                    self._ledger.update_batch(token, "running", state.id)
        return done

    def _missing(self, *, is_first: bool) -> Iterator[_Item]:
        for planned in self._plan.chunks():
            chunk = [*planned, *retries_wanted(self._plan, self._ledger, planned)]
            standing = self._ledger.look_up(answer.key for answer in chunk)
            wanted = {answer.key: answer for answer in chunk if answer.key in standing.missing}
            for answer in wanted.values():
                body = self._provider.body(answer.request)
                size = self._protocol.size(body)
                yield _Item(self._attempt_plan(answer, size), size, answer.key)
            if is_first:
                refused = sum(answer.key in standing.refused for answer in chunk)
                self._tally.counts.update(refused=refused, found=len(chunk) - len(wanted) - refused)
                self._on_step(Step(found=len(chunk) - len(wanted)))

    def _bodies(self, token: str, keys: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The bodies of these answers, made one at a time."""
        left = set(keys)
        for planned in self._plan.chunks():
            for answer in (*planned, *retries_wanted(self._plan, self._ledger, planned)):
                if answer.key in left:
                    left.remove(answer.key)
                    yield custom_id(token, answer.key[:32]), self._provider.body(answer.request)

    def _attempt_plan(self, answer: PlannedAnswer, size: int) -> AttemptPlan:
        return AttemptPlan(
            answer_key=answer.key,
            prompt_id=answer.prompt.prompt_id,
            run=self._plan.run,
            purpose="teach",
            provider=self._provider.name,
            model=answer.request.model,
            bound_usd=self._rates.upper_bound(size, answer.request.max_tokens),
            rates=self._rates,
            month=self._plan.month(),
        )

    def _refuse(self, large: TooLarge[_Item]) -> None:
        admission = self._ledger.begin(large.item.plan)
        if admission.attempt_id is not None:
            said = large.failure.message
            self._ledger.settle(Settlement(admission.attempt_id, large.item.plan, "refused", error=said))
            self._tally.counts["refused"] += 1
            self._tally.last_error = said

    async def _finish_open(self) -> None:
        """Wait for every batch at this endpoint that has not ended, and put its results into the ledger."""
        while rows := self._ledger.open_batches(self._provider.name, self._base_url):
            is_done = [await self._finish(row) for row in rows if self._ledger.claim_batch(row.token)]
            if not any(is_done):
                await self._sleep(self._plan.teacher.batch_poll_seconds)

    async def _finish(self, row: BatchRow) -> bool:
        """Whether a batch has ended, and all that it has brought is in the ledger."""
        state = await self._state_of(row)
        if state is None:
            close_unsubmitted(self._ledger, row)
            self._say(f"batch {row.token} never reached the provider")
            return True
        if state.status == "running":
            done = state.counts.get("completed", state.counts.get("succeeded", 0))
            self._say(
                f"batch {state.id}: {state.said}; the provider says that {done:,} of {row.num_requests:,} are done"
            )
            return False
        if state.rejection is not None:
            self._say(f"batch {state.id}: {state.rejection.message}")
            close_rejected(self._ledger, row, state, self._keys_of(row, state.rejected_lines))
            self._shrink(row, state)
            return True
        async for step in close_batch(self._ledger, row, self._protocol.results(state), self._plan.run, self._rates):
            self._tally.add(step)
            self._tally.counts["answered"] += step.answered
            self._on_step(step)
        self._say(f"batch {state.id}: collected")
        return True

    def _keys_of(self, row: BatchRow, lines: tuple[int, ...]) -> set[str]:
        """The answer keys of these lines of a batch: they stand in the order of the plan that they were made from."""
        keys = {attempt.plan.answer_key for attempt in self._ledger.in_batch(row.token)}
        found = (
            list(dict.fromkeys(answer.key for answer in self._plan.answers() if answer.key in keys)) if lines else []
        )
        return {found[line - 1] for line in lines if line <= len(found)} if len(found) == len(keys) else set()

    def _shrink(self, row: BatchRow, state: BatchState) -> None:
        """A provider that queues only so many tokens takes smaller batches, one after the other."""
        if state.rejection is None or state.rejection.cause != "rate_limit":
            return
        if row.num_requests == 1:
            raise TransientTeacherError(f"{row.base_url}: {state.rejection.message}: run the same again later")
        self._limits = Limits(row.num_requests // 2, self._limits.bytes)

    async def _state_of(self, row: BatchRow) -> BatchState | None:
        """The provider's view of a batch; None where it does not have it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if row.batch_id is not None:
                    return await self._protocol.state(row.batch_id)
                return await self._find(row)
            except NotAuthorisedError:
                raise
            except TeacherError as error:
                if time.monotonic() > deadline:
                    raise TransientTeacherError(
                        f"{error}. The batch goes on: run the same again to collect it"
                    ) from None
                self._say(f"batch {row.batch_id or row.token}: {error}; it goes on, and is looked at again")
                await self._sleep(self._plan.teacher.batch_poll_seconds)

    async def _find(self, row: BatchRow) -> BatchState | None:
        """A batch whose id never came, as far as the provider lets us see; see `BatchProtocol.find`."""
        others = self._ledger.known_batches()
        while True:
            found = await self._protocol.find(row.token, row.created_at, row.num_requests, others)
            if found is None or (found.status == "running" and not found.is_certain):
                return found
            if found.is_certain or await self._is_ours(found, row.token):
                self._ledger.update_batch(row.token, "running", found.id)
                return found
            others.add(found.id)

    async def _is_ours(self, state: BatchState, token: str) -> bool:
        """Whether the results of a batch are those of this token."""
        async for result in self._protocol.results(state):
            if result.custom_id:
                return is_of(token, result.custom_id)
        return False

    def _count_missing(self) -> None:
        for chunk in self._plan.chunks():
            standing = self._ledger.look_up(answer.key for answer in chunk)
            self._tally.counts["unanswered"] += len(standing.missing)
            if standing.missing and self._tally.last_error is None:
                costs = self._ledger.costs(standing.missing)
                self._tally.last_error = next((cost.last_error for cost in costs.values() if cost.last_error), None)
