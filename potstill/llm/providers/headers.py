"""Reads the headers that tell of waits and limits. Whatever cannot be read is None, never an error."""

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from potstill.llm.providers.base import Limit

UNIT_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
UNIT = r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)"
_DURATION = re.compile(rf"(?:{UNIT})+")
_UNIT = re.compile(UNIT)


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, else `retry-after`, seconds or a date (RFC 9110, 10.2.3)."""
    milliseconds = read_number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    asked = headers.get("retry-after")
    seconds = read_number(asked)
    return seconds if seconds is not None else _seconds_until(_read_http_date(asked), headers)


def read_number(value: str | None) -> float | None:
    """A number that is neither negative nor infinite."""
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None


def read_duration(value: str | None) -> float | None:
    """Seconds of a duration such as `6m0s`, `1.5s` or `120ms`; a bare number is seconds."""
    if value is None or not _DURATION.fullmatch(value):
        return read_number(value)
    return sum(float(number) * UNIT_SECONDS[unit] for number, unit in _UNIT.findall(value))


def read_reset(value: str | None, headers: Mapping[str, str]) -> float | None:
    """Seconds until a time in RFC 3339, by the clock of the server that names it."""
    try:
        return _seconds_until(datetime.fromisoformat(value or ""), headers)
    except ValueError:
        return None


def make_limit(limit: str | None, remaining: str | None, reset_seconds: float | None) -> Limit | None:
    """A bucket, where both of its figures are readable; one that holds nothing is no bucket."""
    size, left = read_number(limit), read_number(remaining)
    return Limit(size, left, reset_seconds) if size and left is not None else None


def _seconds_until(moment: datetime | None, headers: Mapping[str, str]) -> float | None:
    if moment is None:
        return None
    now = _read_http_date(headers.get("date"))
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - (now.timestamp() if now else time.time()))


def _read_http_date(value: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value or "")
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
