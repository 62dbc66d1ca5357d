"""One attempt: paced, reserved in the ledger, sent, and settled whatever becomes of it."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Literal

from potstill.errors import BudgetReachedError, TransientTeacherError
from potstill.ledger.entries import Admission, AttemptPlan, Caps, Purpose, Settlement, Status
from potstill.ledger.grouping import GroupedLedger
from potstill.llm.breaker import Breaker
from potstill.llm.client import Attempt, ChatClient
from potstill.llm.limiter import Cost, Limiter, Ticket
from potstill.llm.messages import ChatRequest, Reply, SharedPrefixes
from potstill.llm.providers.base import Failure, Limit, LimitName
from potstill.llm.providers.errors import error_for_the_run
from potstill.llm.retrying import UnansweredError
from potstill.teacher.budget import describe_cap
from potstill.teacher.doubts import Doubts
from potstill.teacher.outcome import DoubtfulRefusalError, PromptAtFaultError, RefusedError, Step, status_of, step_of
from potstill.teacher.plan import PlannedAnswer, TeachPlan
from potstill.teacher.shares import Share
from potstill.teacher.stopping import Stop

BYTES_A_TOKEN = 4
MANY_PROMPTS = 5
"""So many different ones that failed with no answer between them speak against the endpoint, not against the prompts."""
NO_LIMITS: Mapping[LimitName, Limit] = {}
ROOM_SECONDS = 1.0
"""How often somebody who waits for room in the budget looks whether another process has made some."""

Sent = Literal["answered", "found", "claimed"]
"""An answer came; one stands in the ledger already; somebody asks for the same right now."""


class Sender:
    """Sends the attempts of one run; everything in it runs on one event loop.

    Args:
        caps: what may be spent by the plan's run, and by its recipe in this month.
        clock: seconds, by which requests are paced; the event loop's.
    """

    def __init__(
        self,
        plan: TeachPlan,
        ledger: GroupedLedger,
        client: ChatClient,
        caps: Caps,
        stop: Stop,
        purpose: Purpose,
        clock: Callable[[], float],
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self._client = client
        self._caps = caps
        self._stop = stop
        self._purpose: Purpose = purpose
        self._limiter = Limiter(plan.teacher.rpm, plan.teacher.tpm, clock=clock, sleep=stop.sleep)
        self._breaker = Breaker(clock)
        self._failed_since_answer: set[str] = set()
        """Keys; whichever of many concurrent requests fail, an answer in between clears all of them."""
        self.doubts = Doubts(clock)
        self._clock = clock
        self._prefixes = SharedPrefixes()
        self._settled = asyncio.Event()
        self.has_replied = False
        """Whether the endpoint has sent an HTTP 200: what it says of a prompt is then the prompt's fault."""

    def divide(self, share: Share) -> None:
        """Pace at a share of the limits from now on."""
        rpm, tpm = (
            None if cap is None else share.part(cap) for cap in (self._plan.teacher.rpm, self._plan.teacher.tpm)
        )
        self._limiter.divide(rpm, tpm, share.fraction)

    @property
    def is_failing(self) -> bool:
        """Whether the endpoint may be down: then a failure says little of a prompt."""
        return self._breaker.is_about_to_open or len(self._failed_since_answer) >= MANY_PROMPTS

    def acquit(self, key: str) -> None:
        """A prompt turned out to be at fault itself: its failures no longer speak against the endpoint."""
        self._failed_since_answer.discard(key)

    async def send(self, answer: PlannedAnswer, on_step: Callable[[Step], None]) -> Sent:
        """Ask once.

        Errors: `UnansweredError` where another attempt may help, `RefusedError` where none would; what ends the run.
        """
        self._stop.check()
        body = self._encode(answer.request)
        ticket = await self._limiter.acquire(Cost(len(body) // BYTES_A_TOKEN, answer.request.max_tokens))
        plan = self._plan.attempt(answer, len(body), self._plan.rates, self._purpose)
        try:
            admission = await self._reserve(plan)
        except BaseException:
            self._limiter.release(ticket)
            raise
        if admission.attempt_id is None:
            self._limiter.release(ticket)
            return await self._not_sent(admission, answer)
        started = self._clock()
        attempt: Attempt | None = None
        try:
            attempt = await self._client.ask(body)
            self.has_replied = self.has_replied or attempt.http_status == 200
        finally:
            self._learn(answer.key, ticket, attempt, started)
            settlement = self._settlement(admission.attempt_id, plan, attempt, self._clock() - started)
            if attempt is None:  # cancelled: nobody is there to wait
                self._ledger.settle(settlement)
        assert attempt is not None
        settled = self._ledger.settle(settlement)
        step = step_of(settlement)  # at the price of now: an outage of the ledger may last
        with self._stop.where_the_ledger_fails(self._ledger.ledger.url):
            await settled
        self._settled.set()  # wakes all that wait; who waits next waits for the next
        self._settled = asyncio.Event()
        on_step(step)
        self._judge(attempt, settlement)
        return "answered"

    def _encode(self, request: ChatRequest) -> bytes:
        """The body; from the second request on that begins with the same long text, the provider is to keep it."""
        is_known = self._plan.teacher.prompt_caching and self._prefixes.repeats(request)
        return self._client.encode(request, cache_prefix=is_known)

    def _learn(self, key: str, ticket: Ticket, attempt: Attempt | None, started: float) -> None:
        """Tell the pace, and whoever watches over the endpoint, how a request ended."""
        failure = attempt.outcome if attempt and isinstance(attempt.outcome, Failure) else None
        self._limiter.settle(
            ticket,
            limits=attempt.limits if attempt else NO_LIMITS,
            usage=attempt.outcome.usage if attempt else None,
            is_rate_limited=failure is not None and failure.cause == "rate_limit",
            retry_after_seconds=failure.retry_after_seconds if failure else None,
        )
        if attempt is None:
            return
        if failure is None or self._is_prompts_own(key, attempt):
            self._breaker.record(ok=True)
            self._failed_since_answer.clear()
        elif failure.cause == "request":
            self.doubts.refused(key)
        elif failure.cause == "transient":
            self._breaker.record(ok=False)
            self._failed_since_answer.add(key)
        if failure is None:
            self.doubts.answered(started)

    def _is_prompts_own(self, key: str, attempt: Attempt) -> bool:
        """Whether it was refused, and that is certainly the prompt's fault."""
        failure = attempt.outcome
        if not isinstance(failure, Failure) or failure.cause != "request":
            return False
        return failure.is_prompts_own or self.doubts.is_at_fault(key)

    async def _reserve(self, plan: AttemptPlan) -> Admission:
        """The attempt's row, once the caps admit it; while requests are in flight, one of them may make room."""
        while True:
            self._stop.check()
            settled = self._settled
            with self._stop.where_the_ledger_fails(self._ledger.ledger.url):
                admission = await self._ledger.begin(plan, self._caps)
                if admission.why_not != "no_room":
                    return admission
                if admission.in_flight == 0:
                    said = await self._ledger.run(describe_cap, self._plan, self._ledger.ledger, plan, self._caps)
                    self._stop.because(BudgetReachedError(said))
                elif not await self._has_settled(settled):
                    await self._ledger.run(self._ledger.ledger.close_orphans)  # nor can the dead make room

    async def _has_settled(self, settled: asyncio.Event) -> bool:
        """Wait until a request of this process has; False where none does for a while."""
        try:
            async with asyncio.timeout(ROOM_SECONDS):
                await settled.wait()
        except TimeoutError:
            return False
        return True

    async def _not_sent(self, admission: Admission, answer: PlannedAnswer) -> Sent:
        if admission.why_not == "refused":
            known = await self._ledger.run(self._ledger.ledger.costs, [answer.key])
            raise RefusedError(known[answer.key].last_error or "refused")
        return "claimed" if admission.why_not == "claimed" else "found"

    def _settlement(self, attempt_id: int, plan: AttemptPlan, attempt: Attempt | None, seconds: float) -> Settlement:
        """How the attempt ended; `attempt` is None where it was cancelled."""
        if attempt is None:
            return Settlement(attempt_id, plan, "unknown", error="cancelled", seconds=seconds)
        outcome = attempt.outcome
        is_reply = isinstance(outcome, Reply)
        return Settlement(
            attempt_id,
            plan,
            self._status(plan.answer_key, attempt),
            reply=outcome if is_reply else None,
            usage=outcome.usage,
            http_status=attempt.http_status,
            error=None if is_reply else outcome.message,
            seconds=seconds,
        )

    def _status(self, key: str, attempt: Attempt) -> Status:
        """A refusal that may be the endpoint's own fault does not count yet."""
        status = status_of(attempt.outcome, may_be_billed=attempt.may_be_billed)
        is_doubtful = not self.has_replied or self.doubts.are_many
        return "failed" if status == "refused" and is_doubtful and not self._is_prompts_own(key, attempt) else status

    def _judge(self, attempt: Attempt, settlement: Settlement) -> None:
        """Raise what the outcome means for this request, for the run, or for the pace."""
        failure = attempt.outcome
        if isinstance(failure, Reply):
            return
        said = f"{self._client.base_url}: {failure.message}"
        if failure.cause == "request" and settlement.status != "refused":
            raise DoubtfulRefusalError(failure.message)
        if failure.cause == "request":
            is_own = self._is_prompts_own(settlement.plan.answer_key, attempt)
            raise (PromptAtFaultError if is_own else RefusedError)(failure.message)
        if (error := error_for_the_run(failure, said, self._client.key_remedy)) is not None:
            self._stop.because(error)
        elif self._breaker.is_open:
            self._stop.because(
                TransientTeacherError(f"{said}; {self._breaker.reason()}: run the same again when it is up")
            )
        self._stop.check()
        is_refused = failure.cause == "rate_limit"
        raise UnansweredError(
            failure.message, failure.retry_after_seconds, is_rate_limited=is_refused, is_late=attempt.is_late
        )
