"""The caps that a recipe sets by hand."""

from typing import NamedTuple

LATENESS_SECONDS = 0.02
"""A request that an event loop woke late by up to so much does not delay those behind it."""
SLOW_RPM = 60
"""Up to here such a lateness is nothing, and turns begin when the one before them was really taken."""


class Turn(NamedTuple):
    start: float
    next_at: float
    """When the one after it begins."""


class Caps:
    """Spreads requests and tokens evenly, so that neither cap is exceeded in any minute and idle time is not saved up.

    Args:
        rpm: requests a minute, or None.
        tpm: tokens a minute, or None.
    """

    def __init__(self, rpm: float | None, tpm: float | None) -> None:
        self._next = self._last = 0.0
        self._set(rpm, tpm)

    def _set(self, rpm: float | None, tpm: float | None) -> None:
        self._lateness = 0.0 if rpm and rpm <= SLOW_RPM else LATENESS_SECONDS
        minute = 60 + self._lateness  # the first of a minute may leave late, and the last in time
        self._seconds_per_request = minute / rpm if rpm else 0.0
        self._seconds_per_token = 60 / tpm if tpm else 0.0

    def change(self, now: float, rpm: float | None, tpm: float | None) -> None:
        """Other caps from now on. What others may have sent in the same minute is made room for: the next turn waits for
        one interval of the old caps and one of the new ones.
        """
        before = max(self._seconds_per_request, self._last)
        self._set(rpm, tpm)
        self._next = max(self._next, now) + before + self._seconds_per_request

    @property
    def are_set(self) -> bool:
        return self._seconds_per_request > 0 or self._seconds_per_token > 0

    @property
    def next_at(self) -> float:
        """When the next request may leave."""
        return self._next

    def book(self, now: float, earliest: float, tokens: float) -> Turn:
        """Take the turn of a request of so many tokens that could have left at `earliest`."""
        start = max(self._next, earliest, now - self._lateness)
        self._last = max(self._seconds_per_request, tokens * self._seconds_per_token)
        self._next = start + self._last
        return Turn(start, self._next)

    def give_back(self, turn: Turn) -> None:
        """Free a turn that was not used. One that others have followed is lost: their minute is full."""
        if turn.next_at == self._next:
            self._next = turn.start
