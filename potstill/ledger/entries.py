"""What is written into the ledger, and what is read from it."""

from decimal import Decimal
from functools import cached_property
from typing import Literal, NamedTuple

from potstill.llm.messages import Reply
from potstill.llm.pricing import Rates
from potstill.records import Usage

Purpose = Literal["smoke", "teach", "evaluate", "judge", "base"]
Status = Literal["in_flight", "answered", "unusable", "refused", "failed", "unknown"]
"""unusable: a 200 that cannot be used, billed; refused: for what was asked; failed: for now; unknown: perhaps billed."""


class Caps(NamedTuple):
    """What may be spent; None for no cap."""

    run_usd: Decimal | None = None
    """Over a run and its resumptions."""
    month_usd: Decimal | None = None
    """Over all runs of a recipe in a UTC month."""


NO_CAPS = Caps()
UNFIT = "the ledger's database does not take what came of it"


class AttemptPlan(NamedTuple):
    """What is about to be sent."""

    answer_key: str
    prompt_id: str
    run: str
    """Names the account that the run's cap is compared with."""
    purpose: Purpose
    provider: str
    model: str
    bound_usd: Decimal
    rates: Rates
    month: str | None = None
    """Names the account of the recipe's UTC month; None where no recipe asks."""


class Admission(NamedTuple):
    """Whether an attempt may leave."""

    attempt_id: int | None
    """Its row; None where it may not."""
    why_not: Literal["answered", "refused", "claimed", "no_room"] | None = None
    """An answer stands there; the request was refused for good; somebody asks right now; a cap does not admit it."""
    in_flight: int = 0
    """Where a cap does not admit it: requests on the same accounts, outside batches, that may still make room.

    As of the same moment: where none are, the next request does not fit.
    """


class _Settlement(NamedTuple):
    attempt_id: int
    plan: AttemptPlan
    status: Status
    reply: Reply | None = None
    usage: Usage | None = None
    http_status: int | None = None
    error: str | None = None
    seconds: float = 0.0


class Settlement(_Settlement):
    """How an attempt ended."""

    @cached_property
    def cost_usd(self) -> Decimal:
        """What is known of it, at the price of the moment at which it is first asked for; 0 where nothing is known."""
        return Decimal(0) if self.usage is None else self.plan.rates.cost(self.usage)

    def without_texts(self) -> "Settlement":
        """The same cost without what the server said."""
        status: Status = "unusable" if self.status == "answered" else self.status
        return self._replace(status=status, reply=None, error=UNFIT)

    def at_its_bound(self) -> "Settlement":
        """What is left to say of an attempt of which nothing can be stored."""
        return Settlement(self.attempt_id, self.plan, "unknown", error=UNFIT)


class Answer(NamedTuple):
    """A stored answer."""

    reply: Reply
    seconds: float


class Standing(NamedTuple):
    """What a ledger lacks of some keys."""

    missing: set[str]
    """No answer, and not refused for good: still to be asked."""
    refused: set[str]
    """By the provider, or given up."""


class KeyCost(NamedTuple):
    """What one answer key has cost, over all its attempts."""

    attempts: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    """The sum of what is known."""
    billed: int = 0
    """Attempts that it is the cost of."""
    unknown: int = 0
    """Attempts whose bill nobody knows."""
    unknown_usd: Decimal = Decimal(0)
    """Their upper bound; not in `cost_usd`."""
    refused: bool = False
    """Asking again would not help: the provider rejects this request for what it is, or it was given up."""
    given_up: str | None = None
    """Why the answer is kept from training, where no attempt brought one that can be used."""
    last_error: str | None = None
    """The refusal's, where there was one."""


class AccountState(NamedTuple):
    """One account: a run's, or that of a recipe's month."""

    spent_usd: Decimal = Decimal(0)
    """Known costs, and the upper bound of unknown ones."""
    reserved_usd: Decimal = Decimal(0)

    @property
    def committed_usd(self) -> Decimal:
        """What a cap is compared with."""
        return self.spent_usd + self.reserved_usd
