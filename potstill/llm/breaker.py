"""When the failures of a run say that the provider is down."""

import time
from collections import deque
from collections.abc import Callable

WINDOW = 50
ENOUGH = 30
FAILED_SHARE = 0.9
LASTING_SECONDS = 30.0


class Breaker:
    """Opens when at least 30 attempts are known, 9 in 10 of the last 50 failed, and the failures have lasted for 30 s.

    An outage of some seconds is bridged by each request's own retries, however many requests fail in it. One prompt
    that fails again and again does not open it while others succeed. Refusals for the pace are no failures: they are
    not to be recorded. It stays open.

    Args:
        clock: seconds; injected by tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: deque[bool] = deque(maxlen=WINDOW)
        self._failed = 0
        self._streak_since: float | None = None
        """Since the last success."""
        self._failing_since: float | None = None
        self._reason: str | None = None

    @property
    def is_open(self) -> bool:
        return self._reason is not None

    @property
    def is_about_to_open(self) -> bool:
        """Whether nearly all of the last attempts failed, for however short a time."""
        return len(self._last) >= ENOUGH and self._failing_since is not None

    def reason(self) -> str | None:
        """Why it opened; None while it is closed."""
        return self._reason

    def record(self, *, ok: bool) -> None:
        """Count the end of one attempt."""
        if len(self._last) == WINDOW and not self._last[0]:
            self._failed -= 1
        self._last.append(ok)
        self._failed += not ok
        now = self._clock()
        if ok:
            self._streak_since = None
        elif self._streak_since is None:
            self._streak_since = now
        if self._failed < FAILED_SHARE * len(self._last):
            self._failing_since = None
            return
        if self._failing_since is None:
            self._failing_since = now if self._streak_since is None else self._streak_since
        seconds = now - self._failing_since
        if self._reason is None and len(self._last) >= ENOUGH and seconds >= LASTING_SECONDS:
            self._reason = f"{self._failed} of the last {len(self._last)} attempts failed, for {seconds:.0f} s"
