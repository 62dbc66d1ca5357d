"""Token buckets that the fake teacher enforces, and the headers in which providers tell of them.

Headers: OpenAI's rate limit guide ("reset" is a duration such as 6m0s), Anthropic's ("reset" is a time of RFC 3339).
"""

from datetime import UTC, datetime
from typing import NamedTuple

from bench.fast_teacher.settings import Settings


class Bucket:
    """So much a minute, refilled evenly; full at first."""

    def __init__(self, per_minute: int, burst_seconds: float, now: float) -> None:
        self.per_minute = per_minute
        self.per_second = per_minute / 60
        self.capacity = self.per_second * burst_seconds
        self.level = self.capacity
        self.served = 0.0
        self._at = now

    def seconds_until(self, amount: float, now: float) -> float:
        """How long until there is room for it; 0 where there is. What the bucket can never hold finds room when full."""
        self.level = min(self.capacity, self.level + (now - self._at) * self.per_second)
        self._at = now
        return max(0.0, min(amount, self.capacity) - self.level) / self.per_second

    def take(self, amount: float) -> None:
        self.level -= amount
        self.served += amount

    def used(self, span_seconds: float) -> float:
        """The share that was served of all that it allowed in that time: its capacity and the refill."""
        return self.served / (self.capacity + self.per_second * span_seconds)

    @property
    def reset_seconds(self) -> float:
        return (self.capacity - self.level) / self.per_second


class Limits(NamedTuple):
    """The limits of one teacher; None where none is set."""

    requests: Bucket | None
    tokens: Bucket | None

    @classmethod
    def of(cls, settings: Settings, now: float) -> "Limits":
        rates = (settings.rpm, settings.tpm)
        return cls(*(Bucket(rate, settings.burst_seconds, now) if rate else None for rate in rates))

    @property
    def set(self) -> list[tuple[str, Bucket]]:
        pairs = (("requests", self.requests), ("tokens", self.tokens))
        return [(name, bucket) for name, bucket in pairs if bucket is not None]

    def take(self, tokens: float, now: float) -> float:
        """Charge one request and its tokens, or neither; returns the seconds until there is room, 0 if there was."""
        amounts = {"requests": 1.0, "tokens": tokens}
        wait = max((bucket.seconds_until(amounts[name], now) for name, bucket in self.set), default=0.0)
        if wait == 0:
            for name, bucket in self.set:
                bucket.take(amounts[name])
        return wait

    def openai_headers(self) -> bytes:
        lines = (
            f"x-ratelimit-limit-{name}: {bucket.per_minute}\r\n"
            f"x-ratelimit-remaining-{name}: {max(0, int(bucket.level))}\r\n"
            f"x-ratelimit-reset-{name}: {duration(bucket.reset_seconds)}\r\n"
            for name, bucket in self.set
        )
        return "".join(lines).encode()

    def anthropic_headers(self, wall_time: float) -> bytes:
        lines = (
            f"anthropic-ratelimit-{name}-limit: {bucket.per_minute}\r\n"
            f"anthropic-ratelimit-{name}-remaining: {max(0, int(bucket.level))}\r\n"
            f"anthropic-ratelimit-{name}-reset: {_rfc3339(wall_time + bucket.reset_seconds)}\r\n"
            for name, bucket in self.set
        )
        return "".join(lines).encode()


def duration(seconds: float) -> str:
    """As OpenAI writes it: 12ms, 1.5s, 6m0s, 1h2m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{rest:.3f}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + text


def _rfc3339(wall_time: float) -> str:
    return datetime.fromtimestamp(wall_time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
