"""Pace: so many requests and tokens a minute, and a pause that all requests share."""

import asyncio
import time
from collections.abc import Awaitable, Callable


class Limiter:
    """Spreads requests evenly, so that neither limit is exceeded in any minute.

    Args:
        rpm: requests a minute, or None.
        tpm: tokens a minute, or None.
        clock, sleep: injected by tests; seconds.
    """

    def __init__(
        self,
        rpm: int | None = None,
        tpm: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._seconds_per_request = 60 / rpm if rpm else 0.0
        self._seconds_per_token = 60 / tpm if tpm else 0.0
        self._clock = clock
        self._sleep = sleep
        self._next_start = 0.0
        self._paused_until = 0.0

    async def wait(self, tokens: int) -> None:
        """Return when a request of so many tokens may leave."""
        start = self._take_turn(tokens)
        while (delay := start - self._clock()) > 0:
            await self._sleep(delay)
            if start < self._paused_until:  # everybody who was due in the pause would leave at its end
                start = self._take_turn(tokens)

    def _take_turn(self, tokens: int) -> float:
        start = max(self._clock(), self._next_start, self._paused_until)
        self._next_start = start + max(self._seconds_per_request, tokens * self._seconds_per_token)
        return start

    def pause(self, seconds: float) -> None:
        """Let no request leave for so long."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)
