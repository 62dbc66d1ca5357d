"""What becomes of an attempt, drawn by (seed, mark, number of the attempt): the same in every order and process."""

import hashlib
import math
import struct
from statistics import NormalDist
from typing import NamedTuple

from bench.fast_teacher.settings import Settings

RATE_LIMITED = "429"
RESET = "reset"
INVALID_JSON = "invalid_json"
NO_CHOICES = "no_choices"
EMPTY = "empty"
NO_USAGE = "no_usage"
CUT = "cut"
HTML = "html"
MALFORMED = (INVALID_JSON, NO_CHOICES, EMPTY, NO_USAGE, CUT, HTML)
"""200s that hold no answer. `cut` ends before the length that it promised; `empty` tells its usage, and what is billed."""
SERVER_ERRORS = ("500", "502", "503", "529")

_FOUR = struct.Struct("<4Q")
_UNIT = 2.0**-64
_NORMAL = NormalDist()


class Fate(NamedTuple):
    """What happens to one attempt."""

    fault: str
    """"" for an answer."""
    latency_seconds: float
    answer_tokens: int
    """As long as the teacher would like it."""

    @property
    def is_billed(self) -> bool:
        """Whether tokens are charged: for every 200, and for an answer that was lost with its connection."""
        return not self.fault or self.fault == RESET or self.fault in MALFORMED


def draw(settings: Settings, mark: str, attempt: int) -> Fate:
    """The fate of an attempt; the first one of a mark is number 1."""
    content = f"{settings.seed}/{mark}/{attempt}".encode()
    fault, kind, latency, length = _FOUR.unpack(hashlib.blake2b(content, digest_size=32).digest())
    tokens = round(settings.answer_tokens * (0.75 + 0.5 * length * _UNIT))
    return Fate(_fault(settings, fault * _UNIT, kind), _latency_seconds(settings, latency * _UNIT), tokens)


def _fault(settings: Settings, place: float, kind: int) -> str:
    if place < settings.rate_429:
        return RATE_LIMITED
    place -= settings.rate_429
    if place < settings.rate_5xx:
        return SERVER_ERRORS[kind % len(SERVER_ERRORS)]
    place -= settings.rate_5xx
    if place < settings.rate_reset:
        return RESET
    place -= settings.rate_reset
    return MALFORMED[kind % len(MALFORMED)] if place < settings.rate_malformed else ""


def _latency_seconds(settings: Settings, place: float) -> float:
    mean, sigma = settings.latency_ms / 1000, settings.latency_sigma
    if not mean or not sigma:
        return mean
    return mean * math.exp(sigma * _NORMAL.inv_cdf(min(max(place, _UNIT), 1 - 2.0**-53)) - sigma * sigma / 2)
