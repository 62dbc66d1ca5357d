"""What was spent, as the ledger knows it: exact where a reply said so, a mean beside an upper bound where none did."""

from collections.abc import Iterable
from decimal import ROUND_UP, Decimal
from typing import NamedTuple

from potstill.ledger.entries import KeyCost
from potstill.records import Row

BILLED = frozenset({"answered", "unusable"})
"""The statuses of attempts that a reply put a price on."""

NANO = Decimal("1e-9")


def to_nano(usd: Decimal) -> Decimal:
    """A cost that comes of a division, with 9 decimals, rounded up."""
    return usd.quantize(NANO, ROUND_UP)


class SpendRow(NamedTuple):
    """The attempts of one purpose, model and status together."""

    purpose: str
    model: str
    status: str
    attempts: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: Decimal
    bound_usd: Decimal


class Spend(NamedTuple):
    """The sum over some attempts."""

    attempts: int = 0
    answered: int = 0
    in_flight: int = 0
    unknown: int = 0
    """Attempts whose bill nobody knows."""
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    """The sum of what replies said."""
    unknown_usd: Decimal = Decimal(0)
    """The upper bound of the unknown."""
    billed: int = 0
    """Attempts that a reply put a price on."""

    def with_key(self, cost: KeyCost) -> "Spend":
        """The sum with the attempts of one more answer's key."""
        return self._replace(**{name: getattr(self, name) + getattr(cost, name) for name in OF_A_KEY})

    @property
    def mean_usd(self) -> Decimal:
        """A billed attempt's mean cost; 0 before there is one."""
        return self.cost_usd / self.billed if self.billed else Decimal(0)

    @property
    def estimate_usd(self) -> Decimal:
        """What was spent, an unknown attempt taken for a mean one, and for its upper bound before there is a mean."""
        unknown = to_nano(self.unknown * self.mean_usd) if self.billed else self.unknown_usd
        return self.cost_usd + min(unknown, self.unknown_usd)


OF_A_KEY = tuple(name for name in KeyCost._fields if name in Spend._fields)


def add_up(rows: Iterable[SpendRow]) -> Spend:
    """The sum of these rows."""
    total = Spend()
    for row in rows:
        is_unknown = row.status == "unknown"
        total = Spend(
            attempts=total.attempts + row.attempts,
            answered=total.answered + (row.attempts if row.status == "answered" else 0),
            in_flight=total.in_flight + (row.attempts if row.status == "in_flight" else 0),
            unknown=total.unknown + (row.attempts if is_unknown else 0),
            input_tokens=total.input_tokens + row.input_tokens,
            cached_input_tokens=total.cached_input_tokens + row.cached_input_tokens,
            output_tokens=total.output_tokens + row.output_tokens,
            reasoning_tokens=total.reasoning_tokens + row.reasoning_tokens,
            cost_usd=total.cost_usd + row.cost_usd,
            unknown_usd=total.unknown_usd + (row.bound_usd if is_unknown else Decimal(0)),
            billed=total.billed + (row.attempts if row.status in BILLED else 0),
        )
    return total


class ModelSpend(Row):
    """One line of the table of spend."""

    purpose: str
    model: str
    attempts: int
    answered: int
    unknown: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: Decimal
    unknown_usd: Decimal
    estimate_usd: Decimal

    @property
    def row(self) -> dict[str, str | int]:
        """The line for a person: what cannot be known is said at its upper bound."""
        return {
            "purpose": self.purpose,
            "model": self.model,
            "cost, USD": f"{self.cost_usd.normalize():f}",
            "at most more, USD": f"{self.unknown_usd.normalize():f}",
            "attempts": self.attempts,
            "answered": self.answered,
            "input tokens": self.input_tokens,
            "… cached": self.cached_input_tokens,
            "output tokens": self.output_tokens,
            "… reasoning": self.reasoning_tokens,
        }


def by_model(rows: Iterable[SpendRow]) -> list[ModelSpend]:
    """The spend by purpose and model."""
    found: dict[tuple[str, str], list[SpendRow]] = {}
    for row in rows:
        found.setdefault((row.purpose, row.model), []).append(row)
    sums = {key: add_up(group) for key, group in found.items()}
    return [
        ModelSpend(
            purpose=purpose,
            model=model,
            estimate_usd=total.estimate_usd,
            **{name: getattr(total, name) for name in ModelSpend.model_fields if name in Spend._fields},
        )
        for (purpose, model), total in sums.items()
    ]
