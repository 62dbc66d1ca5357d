"""Asks for answers, each until it stands in the ledger: reserve, send, settle, and ask again where that may help."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal

from potstill.errors import (
    BudgetReachedError,
    NotAuthorisedError,
    PermanentTeacherError,
    PotstillError,
    TransientTeacherError,
)
from potstill.ledger import AttemptPlan, Ledger, Status
from potstill.llm.client import Attempt, ChatClient
from potstill.llm.limiter import Cost, Limiter, Ticket
from potstill.llm.messages import Reply
from potstill.llm.providers.base import Failure
from potstill.llm.retrying import RetryPolicy, UnansweredError, retrying
from potstill.teacher.outcome import BatchReport, Step
from potstill.teacher.plan import PlannedAnswer, TeachPlan

BYTES_A_TOKEN = 4
LONGEST_WAIT_SECONDS = 300.0
"""A server that asks for more, such as a day's quota, ends the run: it goes on when the same is run again."""
PROBES = 3
"""So many prompts may fail, one after the other, at an endpoint that does reply, before it counts as out of order."""


class RefusedError(PermanentTeacherError):
    """The provider rejects this one request; the others go on."""


@dataclass(slots=True)
class _Asking:
    """One request under way, and how many batches wait for it."""

    task: asyncio.Task[None]
    waiting: int = 0


class Asker:
    """The asynchronous core of a session; everything in it runs on one event loop.

    Args:
        budget_usd: the cap of the plan's run over all its resumptions; None for none.
    """

    def __init__(
        self, plan: TeachPlan, ledger: Ledger, client: ChatClient, budget_usd: Decimal | None, policy: RetryPolicy
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self._client = client
        self._budget_usd = budget_usd
        self._policy = policy
        self._limiter = Limiter(plan.teacher.rpm, plan.teacher.tpm, sleep=self._sleep)
        self._slots = asyncio.Semaphore(plan.teacher.concurrency)
        self._settled = asyncio.Event()
        self._in_flight = 0
        self._first = asyncio.Lock()
        self._is_reached = False
        self._run = plan.run
        self._has_replied = False
        self._failed_probes = 0
        self._stopped_by: PotstillError | None = None
        self._stopping = asyncio.Event()
        self._asked: dict[str, _Asking] = {}
        self._ended: dict[str, RefusedError | None] = {}
        """What this session has got an answer or a refusal for."""
        self._early: set[str] = set()
        """Refused before the endpoint had answered anything: the fault may be the endpoint's."""

    async def answer(self, batch: Sequence[PlannedAnswer], on_step: Callable[[Step], None]) -> BatchReport:
        """Ask for what the ledger does not hold of a batch.

        Errors: `NotAuthorisedError`, `BudgetReachedError`, `PermanentTeacherError` and, where the endpoint cannot be
        reached at all, `TransientTeacherError`; `PotstillError` where the ledger cannot be written. Each stops every
        batch; what was answered until then is kept.
        """
        known = self._ledger.costs(answer.key for answer in batch)
        have = self._ledger.find_answers(answer.key for answer in batch)
        refused = {key for key, cost in known.items() if cost.refused and key not in have}
        missing = [answer for answer in batch if answer.key not in have and answer.key not in refused]
        self._has_replied = self._has_replied or bool(have)
        steps: list[Step] = []

        def count(step: Step) -> None:
            steps.append(step)
            on_step(step)

        errors = await self._ask_all(missing, count)
        if early := [answer for answer in missing if answer.key in self._early] if self._has_replied else []:
            for answer in early:  # it answers by now: what it says of these counts
                self._early.discard(answer.key)
                self._ended.pop(answer.key, None)
                errors.pop(answer.key, None)
            errors |= await self._ask_all(early, count)
        if self._early and not self._has_replied:
            self._stop_refusing(str(next(reversed(errors.values()))))
            self._check_going_on()
        return BatchReport(
            answers=len(batch),
            found=len(have),
            answered=len(missing) - len(errors),
            refused=len(refused) + sum(isinstance(error, RefusedError) for error in errors.values()),
            unanswered=sum(isinstance(error, UnansweredError) for error in errors.values()),
            attempts=len(steps),
            cost_usd=sum((step.cost_usd for step in steps), Decimal(0)),
            last_error=str(next(reversed(errors.values()))) if errors else None,
        )

    async def _ask_all(
        self, wanted: Sequence[PlannedAnswer], on_step: Callable[[Step], None]
    ) -> dict[str, RefusedError | UnansweredError]:
        """Ask for each; returns, by key, why some have no answer."""
        errors: dict[str, RefusedError | UnansweredError] = {}
        waiting = iter(wanted)

        async def ask_one_by_one() -> None:
            for answer in waiting:
                try:
                    await self._once(answer, on_step)
                except (RefusedError, UnansweredError) as error:
                    errors[answer.key] = error

        askers = (ask_one_by_one() for _ in range(min(self._plan.teacher.concurrency, len(wanted))))
        results = await asyncio.gather(*askers, return_exceptions=True)
        self._check_going_on()
        for unexpected in results:
            if unexpected is not None:
                raise unexpected
        return errors

    async def _once(self, answer: PlannedAnswer, on_step: Callable[[Step], None]) -> None:
        """Ask, unless another batch has asked for the same content meanwhile, or does so right now."""
        if answer.key in self._ended:
            if (refusal := self._ended[answer.key]) is not None:
                raise refusal
            return
        asking = self._asked.get(answer.key)
        if asking is None:
            asking = self._asked[answer.key] = _Asking(asyncio.create_task(self._ask(answer, on_step)))
        asking.waiting += 1
        try:
            await asyncio.shield(asking.task)
        finally:
            asking.waiting -= 1
            if asking.waiting == 0:  # it is done, or nobody wants it any more
                asking.task.cancel()
                del self._asked[answer.key]

    async def _ask(self, answer: PlannedAnswer, on_step: Callable[[Step], None]) -> None:
        async with self._slots:
            if not self._is_reached:
                async with self._first:
                    if not self._is_reached:
                        await self._reach(answer, on_step)
                        return
            await self._retry(answer, on_step)

    async def _reach(self, answer: PlannedAnswer, on_step: Callable[[Step], None]) -> None:
        """The first request goes alone, so that an endpoint that is down is not stormed.

        Where the endpoint replies and only the answer cannot be used, the fault may be the prompt's: the next one tries.
        """
        address = self._client.base_url
        try:
            await self._retry(answer, on_step)
        except UnansweredError as error:
            self._failed_probes += 1
            if not self._has_replied or self._failed_probes == PROBES:
                self._stop(
                    TransientTeacherError(f"no answer from {address}: {error}. Run the same again when it is up")
                )
            raise
        except RefusedError as error:
            self._failed_probes += 1
            self._is_reached = self._has_replied
            if not self._has_replied and self._failed_probes == PROBES:
                self._stop_refusing(str(error))
            raise
        self._is_reached = True

    async def _retry(self, answer: PlannedAnswer, on_step: Callable[[Step], None]) -> None:
        async for attempt in retrying(self._policy, self._sleep):
            with attempt:
                await self._attempt(answer, on_step)

    async def _sleep(self, seconds: float) -> None:
        """A pause that ends at once, with the reason, when the run stops."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        self._check_going_on()

    async def _attempt(self, answer: PlannedAnswer, on_step: Callable[[Step], None]) -> None:
        self._check_going_on()
        body = self._client.encode(answer.request)
        ticket = await self._limiter.acquire(Cost(len(body) // BYTES_A_TOKEN, self._plan.teacher.max_tokens))
        plan = AttemptPlan(
            answer_key=answer.key,
            prompt_id=answer.prompt.prompt_id,
            run=self._run,
            purpose="teach",
            provider=self._client.provider.name,
            model=answer.request.model,
            bound_usd=self._plan.rates.upper_bound(len(body), answer.request.max_tokens),
            rates=self._plan.rates,
        )
        try:
            attempt_id = await self._reserve(plan)
        except BaseException:
            self._limiter.release(ticket)
            raise
        started = time.monotonic()
        self._in_flight += 1
        attempt: Attempt | None = None
        try:
            attempt = await self._client.ask(body)
            if _status(attempt) == "refused" and not self._has_replied:
                self._early.add(answer.key)
        finally:
            self._settle_pace(ticket, attempt)
            try:
                with self._stop_where_the_ledger_fails():
                    cost = self._settle(attempt_id, plan, attempt, time.monotonic() - started)
            finally:
                self._in_flight -= 1
                self._settled.set()  # wakes all that wait; who waits next waits for the next
                self._settled = asyncio.Event()
        assert attempt is not None
        self._has_replied = self._has_replied or attempt.http_status == 200
        if isinstance(attempt.outcome, Reply):
            self._ended[answer.key] = None
        on_step(Step(answer.key, isinstance(attempt.outcome, Reply), cost))
        self._judge(answer.key, attempt)

    async def _reserve(self, plan: AttemptPlan) -> int:
        """The id of the attempt's row, once the cap admits it; while others are in flight, one of them may make room."""
        while True:
            self._check_going_on()
            with self._stop_where_the_ledger_fails():
                attempt_id = self._ledger.begin(plan, self._budget_usd)
            if attempt_id is not None:
                return attempt_id
            if self._in_flight == 0:
                committed = self._ledger.committed_usd(plan.run)
                self._stop(
                    BudgetReachedError(
                        f"budget {self._budget_usd} USD reached: {committed.normalize():f} USD are spent or reserved and "
                        f"the next request may cost {plan.bound_usd.normalize():f}. "
                        "What was answered is kept: raise the cap and run the same again"
                    )
                )
                continue
            await self._settled.wait()

    def _settle(self, attempt_id: int, plan: AttemptPlan, attempt: Attempt | None, seconds: float) -> Decimal:
        """Close the attempt's row; None where the request was cancelled."""
        outcome = attempt.outcome if attempt else None
        reply = outcome if isinstance(outcome, Reply) else None
        return self._ledger.settle(
            attempt_id,
            plan,
            status="failed" if plan.answer_key in self._early else _status(attempt),
            reply=reply,
            usage=outcome.usage if outcome else None,
            http_status=attempt.http_status if attempt else None,
            error="cancelled" if outcome is None else None if isinstance(outcome, Reply) else outcome.message,
            seconds=seconds,
        )

    def _settle_pace(self, ticket: Ticket, attempt: Attempt | None) -> None:
        outcome = attempt.outcome if attempt else None
        usage = outcome.usage if outcome else None
        is_rate_limited = isinstance(outcome, Failure) and outcome.cause == "rate_limit"
        self._limiter.settle(
            ticket,
            limits={},
            usage=(usage.input, usage.output) if usage else None,
            is_rate_limited=is_rate_limited,
            retry_after_seconds=outcome.retry_after_seconds if isinstance(outcome, Failure) else None,
        )

    def _judge(self, key: str, attempt: Attempt) -> None:
        """Raise what the outcome means for this request, for the run, or for the pace."""
        failure = attempt.outcome
        if isinstance(failure, Reply):
            return
        if failure.cause == "authorisation":
            self._stop(NotAuthorisedError(f"{self._client.base_url}: {failure.message}"))
        elif failure.cause == "run":
            self._stop(PermanentTeacherError(f"{self._client.base_url}: {failure.message}"))
        elif failure.cause == "request":
            refusal = self._ended[key] = RefusedError(failure.message)
            raise refusal
        elif (failure.retry_after_seconds or 0) > LONGEST_WAIT_SECONDS:
            wait = f"it asks to wait {failure.retry_after_seconds:.0f} s"
            self._stop(
                TransientTeacherError(f"{self._client.base_url}: {failure.message}; {wait}: run the same again then")
            )
        self._check_going_on()
        raise UnansweredError(failure.message, failure.retry_after_seconds)

    @contextmanager
    def _stop_where_the_ledger_fails(self) -> Iterator[None]:
        """Whoever cannot write down what is spent must not go on spending."""
        try:
            yield
        except Exception as error:
            said = str(error).partition("\n")[0]
            failure = PotstillError(
                f"ledger {self._ledger.url} cannot be written: {said}. Run the same again once it can"
            )
            self._stop(failure)
            raise failure from error

    def _stop_refusing(self, said: str) -> None:
        address = self._client.base_url
        self._stop(PermanentTeacherError(f"{address} refuses every prompt: {said}. Check key, model and base_url"))

    def _stop(self, error: PotstillError) -> None:
        self._stopped_by = self._stopped_by or error
        self._stopping.set()

    def _check_going_on(self) -> None:
        if self._stopped_by is not None:
            raise self._stopped_by


def _status(attempt: Attempt | None) -> Status:
    if attempt is None:
        return "unknown"
    if isinstance(attempt.outcome, Reply):
        return "answered"
    if attempt.may_be_billed:
        return "unknown"
    if attempt.outcome.usage is not None:
        return "unusable"
    return "refused" if attempt.outcome.cause == "request" else "failed"
