"""What asking came to: told after each attempt, and of each batch."""

from decimal import Decimal
from typing import NamedTuple

from potstill.records import Row


class BatchReport(Row):
    """What became of one batch."""

    answers: int
    found: int
    """Answers that stood in the ledger already."""
    answered: int
    refused: int
    """Requests that the provider rejects for what they are."""
    unanswered: int
    """Requests that failed for now."""
    attempts: int
    cost_usd: Decimal
    """The known cost of the attempts made here."""
    last_error: str | None = None


class Step(NamedTuple):
    """Told after each attempt."""

    key: str
    is_answered: bool
    cost_usd: Decimal
