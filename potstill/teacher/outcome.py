"""What asking came to: told after each attempt, and of each batch."""

from collections import Counter
from decimal import Decimal
from textwrap import shorten
from typing import NamedTuple

from potstill.errors import PermanentTeacherError
from potstill.ledger import Status
from potstill.ledger.entries import Settlement
from potstill.llm.messages import Reply
from potstill.llm.providers.base import Failure
from potstill.records import Row

LONGEST_ERROR = 100
"""Characters, in a line of progress."""


class RefusedError(PermanentTeacherError):
    """The provider rejects this one request; the others go on."""


class PromptAtFaultError(RefusedError):
    """The endpoint is in order: it says what is wrong with the prompt, or has answered others meanwhile."""


class DoubtfulRefusalError(RefusedError):
    """The fault may be the endpoint's: it has answered nothing yet, or refuses one prompt after another."""


def refusal(address: str, said: str) -> str:
    """What a run says that stops at an endpoint which refuses every prompt."""
    return f"{address} refuses every prompt: {said}. Check key, model and base_url"


def status_of(outcome: Reply | Failure, *, may_be_billed: bool) -> Status:
    """What the ledger calls an attempt that came to this."""
    if isinstance(outcome, Reply):
        return "answered"
    if may_be_billed:
        return "unknown"
    if outcome.usage is not None:
        return "unusable"
    return "refused" if outcome.cause == "request" else "failed"


class BatchReport(Row):
    """What became of one batch."""

    answers: int
    found: int
    """Answers that were already in the ledger."""
    answered: int
    refused: int
    """Requests that the provider rejects for what they are."""
    unanswered: int
    """Requests that failed for now."""
    unmended: int = 0
    """Further samples, in place of bad ones, that the batches left without an answer."""
    attempts: int
    cost_usd: Decimal
    """The known cost of the attempts made here."""
    last_error: str | None = None

    def describe(self) -> str:
        return (
            f"{self.found} of {self.answers} answers were already in the ledger, {self.answered} asked for in "
            f"{self.attempts} attempts for {self.cost_usd} USD, {self.refused} refused"
        )

    def describe_unmended(self) -> str:
        why = f" (last: {self.last_error})" if self.last_error else ""
        return f"{self.unmended:,} prompts keep their bad answers: the batches brought no further sample{why}"


class Step(NamedTuple):
    """What has been added since the last one: an attempt, or answers that were already in the ledger."""

    attempts: int = 0
    answered: int = 0
    found: int = 0
    """Refused ones included: they are not asked again."""
    cost_usd: Decimal = Decimal(0)
    failed: int = 0
    """Of the attempts."""
    last_error: str | None = None

    def plus(self, other: "Step") -> "Step":
        """Both together."""
        return Step(
            attempts=self.attempts + other.attempts,
            answered=self.answered + other.answered,
            found=self.found + other.found,
            cost_usd=self.cost_usd + other.cost_usd,
            failed=self.failed + other.failed,
            last_error=other.last_error or self.last_error,
        )

    def describe(self) -> str:
        """For a line of progress: what it cost, and what went wrong."""
        return f"{self.cost_usd:.4f} USD" + (f", {self.failures()}" if self.failed else "")

    def failures(self) -> str:
        """How many attempts have failed, and why the last one did."""
        return f"{self.failed} failed: {shorten(self.last_error or '', LONGEST_ERROR)}"


def step_of(settlement: Settlement) -> Step:
    """What one attempt that has ended adds."""
    is_answered = settlement.status == "answered"
    return Step(1, int(is_answered), 0, settlement.cost_usd, int(not is_answered), settlement.error)


class Tally:
    """What one batch has come to so far."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.attempts = 0
        self.cost_usd = Decimal(0)
        self.last_error: str | None = None

    def add(self, step: Step) -> None:
        self.attempts += step.attempts
        self.cost_usd += step.cost_usd

    def report(self) -> BatchReport:
        """What became of all answers that were wanted."""
        counts = self.counts
        return BatchReport(
            answers=counts.total(),
            found=counts["found"],
            answered=counts["answered"],
            refused=counts["refused"],
            unanswered=counts["unanswered"],
            unmended=counts["unmended"],
            attempts=self.attempts,
            cost_usd=self.cost_usd,
            last_error=self.last_error,
        )
