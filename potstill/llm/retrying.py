"""When one request is asked again. The only place where such numbers live."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from potstill.errors import TransientTeacherError

PROBE_TIMEOUTS = 2
"""So often may the first request of a run meet silence: each time takes the whole timeout, and may be billed."""


class RetryPolicy(NamedTuple):
    """Attempts in all, and the jittered exponential pause between them."""

    attempts: int = 6
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0
    refusals: int = 20
    """So many more where the server refuses the pace: that costs nothing, and is no fault of the request."""


class UnansweredError(TransientTeacherError):
    """One attempt failed in a way that another may mend; it carries the wait that the server asked for."""

    def __init__(
        self,
        message: str,
        retry_after_seconds: float | None = None,
        *,
        is_rate_limited: bool = False,
        is_late: bool = False,
    ) -> None:
        super().__init__(message, retry_after_seconds)
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.is_rate_limited = is_rate_limited
        self.is_late = is_late

    def __str__(self) -> str:
        return self.message


def retrying(
    policy: RetryPolicy, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep, *, timeouts: int | None = None
) -> AsyncRetrying:
    """A loop of attempts that goes on after `UnansweredError` and lets every other error out at once.

    `timeouts` is how many of them may end without a word, where that is fewer than the policy's attempts.
    """
    backoff = wait_random_exponential(multiplier=policy.first_wait_seconds, max=policy.longest_wait_seconds)
    refusals = late = 0

    def is_last(state: RetryCallState) -> bool:
        nonlocal refusals, late
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, UnansweredError) and error.is_rate_limited:
            refusals = min(refusals + 1, policy.refusals)
        late += isinstance(error, UnansweredError) and error.is_late
        return late == timeouts or state.attempt_number - refusals >= policy.attempts

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after_seconds if isinstance(error, UnansweredError) else None
        return max(asked or 0.0, backoff(state))

    return AsyncRetrying(
        stop=is_last,
        wait=wait,
        retry=retry_if_exception_type(UnansweredError),
        sleep=sleep,
        reraise=True,
    )
