"""The caps that a recipe sets by hand."""

LATENESS_SECONDS = 0.02
"""A request that an event loop woke late by up to so much does not delay those behind it."""


class Caps:
    """Spreads requests and tokens evenly, so that neither cap is exceeded in any minute and idle time is not saved up.

    Args:
        rpm: requests a minute, or None.
        tpm: tokens a minute, or None.
    """

    def __init__(self, rpm: float | None, tpm: float | None) -> None:
        self._seconds_per_request = 60 / rpm if rpm else 0.0
        self._seconds_per_token = 60 / tpm if tpm else 0.0
        self._next = 0.0

    @property
    def are_set(self) -> bool:
        return self._seconds_per_request > 0 or self._seconds_per_token > 0

    @property
    def next_at(self) -> float:
        """When the next request may leave."""
        return self._next

    def book(self, now: float, earliest: float, tokens: float) -> float:
        """Take the turn of a request of so many tokens that could have left at `earliest`; returns the seconds booked."""
        seconds = max(self._seconds_per_request, tokens * self._seconds_per_token)
        self._next = max(self._next, earliest, now - LATENESS_SECONDS) + seconds
        return seconds

    def give_back(self, seconds: float) -> None:
        self._next -= seconds
