"""What the fake teacher decides about a request, and what it counts; how bytes travel is the business of `server`."""

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench.fast_teacher import faults
from bench.fast_teacher.dialects import Answer, Dialect, answer, read_request
from bench.fast_teacher.limits import Limits
from bench.fast_teacher.log import LIMITER, Logged, LogWriter
from bench.fast_teacher.settings import Settings

REASONS = {
    200: b"OK",
    400: b"Bad Request",
    404: b"Not Found",
    411: b"Length Required",
    413: b"Content Too Large",
    429: b"Too Many Requests",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    529: b"Overloaded",
}
HTML = b"<!DOCTYPE html><html><body><h1>Please wait while we check your connection</h1></body></html>"
BAD_REQUEST = "bad_request"
ENDING = frozenset({faults.RESET, faults.CUT})
"""Faults after which the connection ends."""


class Reply(NamedTuple):
    """What goes out, and when."""

    data: bytes
    """Empty for a reset."""
    latency_seconds: float = 0.0
    closes: bool = False
    """The connection ends after it."""


class Teacher:
    """One teacher: its limits, its counts, its log."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._limits = Limits.of(settings, time.monotonic())
        self._log = LogWriter(Path(settings.log)) if settings.log else None
        self._attempts: dict[str, int] = {}
        self._requests = self._answered = self._billed = self._input_tokens = self._output_tokens = 0
        self._statuses = {429: 0}
        self._limiter_refusals = self.in_flight = self._peak_in_flight = 0
        self._first_at = self._last_at = self._served_until = 0.0

    def reply(self, dialect: Dialect, body: bytes) -> Reply:
        """Decide on a request; it is logged and, where it will be, billed at once, whatever becomes of its client."""
        now = time.time()
        asked = read_request(body)
        if asked is None:
            self._count(Logged(now, "", 400, BAD_REQUEST, 0, 0, 0))
            return Reply(response(400, dialect.error(400), self._headers(dialect, now)))
        attempt = self._attempts.get(asked.mark, 0) + 1
        fate = faults.draw(self.settings, asked.mark, attempt)
        given = answer(asked, fate.answer_tokens)
        expected = asked.max_tokens if self.settings.charge == "max" and asked.max_tokens else given.tokens
        wait = self._limits.take(asked.prompt_tokens + expected, time.monotonic())
        if wait:
            self._limiter_refusals += 1
            self._count(Logged(now, asked.mark, 429, LIMITER, 0, 0, attempt))
            headers = self._headers(dialect, now) + self._limit_retry_after(wait)
            return Reply(response(429, dialect.error(429), headers))
        self._attempts[asked.mark] = attempt
        self._served_until = now
        status = 0 if fate.fault == faults.RESET else int(fate.fault) if fate.fault.isdigit() else 200
        billed = (asked.prompt_tokens, given.tokens) if fate.is_billed else (0, 0)
        self._count(Logged(now, asked.mark, status, fate.fault, *billed, attempt))
        headers = self._headers(dialect, now)
        if status == 200:
            data = self._answer(dialect, given, fate.fault, headers)
        elif status == 0:
            data = b""
        else:
            if status == 429 and self.settings.retry_after:
                headers += f"retry-after: {self.settings.retry_after}\r\n".encode()
            data = response(status, dialect.error(status), headers)
        return Reply(data, fate.latency_seconds, closes=fate.fault in ENDING)

    def _answer(self, dialect: Dialect, given: Answer, fault: str, headers: bytes) -> bytes:
        """A 200, good or malformed."""
        if fault == faults.HTML:
            return response(200, HTML, headers, b"text/html")
        if fault == faults.NO_CHOICES:
            return response(200, dialect.without_choices(given), headers)
        body = dialect.reply(given._replace(text="") if fault == faults.EMPTY else given, self._requests)
        if fault == faults.NO_USAGE:
            body = dialect.without_usage(body)
        elif fault == faults.INVALID_JSON:
            body = body[:-9]
        whole = response(200, body, headers)
        return whole[: -len(body) // 2] if fault == faults.CUT else whole

    def _headers(self, dialect: Dialect, now: float) -> bytes:
        if not self.settings.headers or not self._limits.set:
            return b""
        is_anthropic = dialect.path.endswith(b"messages")
        return self._limits.anthropic_headers(now) if is_anthropic else self._limits.openai_headers()

    def _limit_retry_after(self, wait: float) -> bytes:
        if not self.settings.limit_retry_after:
            return b""
        return f"retry-after: {math.ceil(wait)}\r\nretry-after-ms: {math.ceil(wait * 1000)}\r\n".encode()

    def _count(self, row: Logged) -> None:
        self._first_at = self._first_at or row.at
        self._last_at = row.at
        self._requests += 1
        self._answered += row.status == 200 and not row.fault
        self._billed += row.is_billed
        self._input_tokens += row.input_tokens
        self._output_tokens += row.output_tokens
        if row.status != 200:
            self._statuses[row.status] = self._statuses.get(row.status, 0) + 1
        if self._log is not None:
            self._log.add(row)

    def begin(self) -> None:
        """A reply is being waited for."""
        self.in_flight += 1
        self._peak_in_flight = max(self._peak_in_flight, self.in_flight)

    def stats(self) -> dict[str, Any]:
        span = self._served_until - self._first_at if self._served_until else 0.0
        return {
            "requests": self._requests,
            "answered": self._answered,
            "billed": self._billed,
            "input_tokens": self._input_tokens,
            "output_tokens": self._output_tokens,
            "rate_limited": self._statuses[429],
            "refused_by_limiter": self._limiter_refusals,
            "peak_in_flight": self._peak_in_flight,
            "first_at": self._first_at,
            "last_at": self._last_at,
            "capacity_used": {name: bucket.used(span) for name, bucket in self._limits.set},
        }

    def flush(self) -> None:
        if self._log is not None:
            self._log.flush()

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


def response(status: int, body: bytes, headers: bytes = b"", kind: bytes = b"application/json") -> bytes:
    """A whole HTTP/1.1 response."""
    start = (status, REASONS[status], kind, len(body), headers)
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b" % (*start, body)
