"""A request as the pace sees it: what it may cost, and when it left."""

from dataclasses import dataclass
from typing import NamedTuple

from potstill.llm.pacing.caps import Turn


class Cost(NamedTuple):
    """What a request may cost: an estimate, known before it leaves."""

    prompt_tokens: int
    max_tokens: int


@dataclass(slots=True, eq=False)
class Ticket:
    """One request's leave to go."""

    number: int
    """In the order of leaving, from 0."""
    cost: Cost
    left_at: float
    turn: Turn | None = None
    """What the caps booked for it."""
