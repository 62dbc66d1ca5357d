"""The server's own buckets, mirrored from what the headers of its replies say."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from potstill.llm.pacing.sizes import Amounts
from potstill.llm.pacing.ticket import Cost, Ticket
from potstill.llm.providers.base import Limit, LimitName
from potstill.records import Usage

REFILL = 0.995
"""Of what the server says it refills: clocks differ, and an empty bucket costs more than a full one."""
FIRST_RESERVE = 0.01
LARGEST_RESERVE = 0.2
"""What stays in a bucket, as a share of it, for what arrives out of order. A wave of refusals doubles it."""
DEVIATIONS = 3.0
SPREAD_MEMORY = 100
"""Beside that share, so many standard deviations of what is in flight stay in it."""
SMALLEST_GROUP = 20
OVERTAKING_SECONDS = 0.05
"""Requests that left within so long may have arrived in another order."""
FALL = 0.25
RISE_SECONDS = 0.5
"""How far a reply draws the level down or up to what it says; up only as far as time has passed between the requests."""
BOOKED_AS_LIKELY = frozenset({"input_tokens"})
"""Limits booked as likely until replies say otherwise: Anthropic counts input from its cache for a few old models only."""
SILENT_REPLIES = 1000
"""After so many replies in a row that do not name a limit it is forgotten."""


class Judge:
    """Whether a server charges the most, `max_tokens` or input with all that a cache held, or what was used: the way of
    charging by which what remains stays explained.

    `remaining - refilled + booked` does not change while what was booked is what was charged. Replies are averaged in
    groups as large as what is in flight, where those that overtook each other cancel out; every request of a group left
    after the last reply of the group before, so that none of them overtook one of those.
    """

    def __init__(self, after: int) -> None:
        self._size = 0
        self._count = 0
        self._sum = Amounts(0.0, 0.0)
        self._before: Amounts | None = None
        self._after = after

    def hear(self, number: int, newest: int, remaining: float, booked: Amounts, in_flight: int) -> bool | None:
        """True for the most, False for what was used, None where nothing new is known."""
        if number <= self._after:
            return None
        if self._count == 0:
            self._size = max(SMALLEST_GROUP, in_flight)
        self._count += 1
        self._sum = Amounts(self._sum.likely + remaining + booked.likely, self._sum.most + remaining + booked.most)
        if self._count < self._size:
            return None
        mean = Amounts(self._sum.likely / self._count, self._sum.most / self._count)
        before, self._before, self._after = self._before, mean, newest
        self._count, self._sum = 0, Amounts(0.0, 0.0)
        if before is None:
            return None
        unexplained, apart = mean.likely - before.likely, (mean.most - mean.likely) - (before.most - before.likely)
        return unexplained < -apart / 2 if apart > 0 else None


class Booking(NamedTuple):
    charge: float
    total: Amounts
    """All that was ever booked, up to and with this."""
    charged: float
    """The same as it was charged."""
    charged_before: float
    """All that was charged up to `OVERTAKING_SECONDS` or less before it."""


class Bucket:
    """One bucket. Its level falls with what leaves, rises with time, and is drawn to what replies say.

    A reply says `remaining` as it was when its request arrived: what left after that request, replied or not, is
    subtracted, and what was refilled since is added. Requests overtake each other on the way, so that a single reply may
    be wrong by those beside it: the level moves a part of the way only, and a reply to a request that left before the
    newest one told of can lower it and not raise it.
    """

    def __init__(self, *, books_most: bool) -> None:
        self._refill = 0.0
        self._capacity = 0.0
        self._level = 0.0
        self._as_of = 0.0
        self._most_remaining = 0.0
        self._fullest = float("inf")
        self._reserve = FIRST_RESERVE
        self._booked: dict[int, Booking] = {}
        """What is in flight."""
        self._total = Amounts(0.0, 0.0)
        self._charged = 0.0
        self._flock_at = float("-inf")
        self._charged_before = 0.0
        self._told_of = -1
        self._told_at = float("-inf")
        self._books_most = books_most
        self._judge = Judge(after=-1)
        self._newest = -1
        self._spread = 0.0
        """The mean square by which requests took other amounts than were booked."""
        self._synced_of = -1
        """What requests up to this one took is in the level as the server told it."""
        self._distrusted_of = -1
        self._silent = 0

    def _level_at(self, now: float) -> float:
        return min(self._capacity, self._level + self._refill * (now - self._as_of))

    def _charge(self, amounts: Amounts) -> float:
        return amounts.most if self._books_most else amounts.likely

    def delay(self, now: float, amounts: Amounts) -> float:
        """Seconds until a request that takes so much may leave; one that is larger than the bucket needs a full one."""
        reserve = max(self._reserve * self._capacity, DEVIATIONS * math.sqrt(self._spread * len(self._booked)))
        wanted = min(self._charge(amounts) + reserve, self._capacity)
        return (wanted - self._level_at(now)) / self._refill

    def book(self, number: int, now: float, amounts: Amounts) -> None:
        charge = self._charge(amounts)
        self._newest = number
        self._total = Amounts(self._total.likely + amounts.likely, self._total.most + amounts.most)
        self._charged += charge
        if now - self._flock_at > OVERTAKING_SECONDS:
            self._flock_at, self._charged_before = now, self._charged - charge
        self._booked[number] = Booking(charge, self._total, self._charged, self._charged_before)
        self._level, self._as_of = self._level_at(now) - charge, now

    def end(self, number: int, amounts: Amounts | None, left_at: float, now: float, limit: Limit | None) -> None:
        """A request is over: what it took by either way of charging, where that is known, and what its reply says."""
        booking = self._booked.pop(number, None)
        if booking is not None and amounts is not None and number > self._synced_of:
            error = booking.charge - self._charge(amounts)
            self._level += error
            if amounts.most > 0:
                self._spread += (error * error - self._spread) / SPREAD_MEMORY
        if limit is None:
            self._silent += 1
        elif booking is not None:
            self._silent = 0
            self._hear(number, booking, left_at, now, limit)

    def begin(self, number: int, left_at: float, now: float, limit: Limit) -> None:
        """The first that is heard of this limit."""
        self._hear(number, Booking(0.0, self._total, self._charged, self._charged), left_at, now, limit)

    @property
    def is_silent(self) -> bool:
        return self._silent > SILENT_REPLIES

    def _hear(self, number: int, booking: Booking, left_at: float, now: float, limit: Limit) -> None:
        self._measure(limit)
        arrived = limit.remaining + self._refill * (now - left_at)
        said = min(self._capacity, arrived - (self._charged - booking.charged))
        surely = min(said, arrived - (self._charged - booking.charged_before))
        level = self._level_at(now)
        if self._told_of < 0:
            level = said
        elif said < level:
            level += FALL * (said - level)
        elif number > self._told_of and surely > level:
            level += min(FALL, (left_at - self._told_at) / RISE_SECONDS) * (surely - level)
        self._level, self._as_of = level, now
        if number > self._told_of:
            self._told_of, self._told_at = number, left_at
        unfilled = limit.remaining - self._refill / REFILL * left_at
        books_most = self._judge.hear(number, self._newest, unfilled, booking.total, len(self._booked))
        if books_most is not None and books_most != self._books_most:
            self._books_most, self._synced_of = books_most, self._told_of

    def _measure(self, limit: Limit) -> None:
        """How large the bucket is and how fast it fills. A reset may be rounded or another clock's: the least counts."""
        rate = limit.limit / 60
        if self._refill != rate * REFILL:
            self._refill, self._most_remaining, self._fullest = rate * REFILL, 0.0, float("inf")
        self._most_remaining = max(self._most_remaining, limit.remaining)
        if limit.reset_seconds is not None:
            self._fullest = min(self._fullest, limit.remaining + rate * limit.reset_seconds)
        known = min(self._fullest, limit.limit) if limit.reset_seconds is not None else 0.0
        self._capacity = max(self._most_remaining, known, rate, 1.0)

    def distrust(self, newest: int) -> None:
        """The server refused what the mirror allowed: keep more back, and book the most from here on until it is disproved."""
        if self._told_of > self._distrusted_of:  # one wave of refusals counts once
            self._reserve = min(2 * self._reserve, LARGEST_RESERVE)
            self._distrusted_of = newest
        self._books_most = True
        self._judge = Judge(after=newest)

    def refill_seconds(self, amount: float) -> float:
        return amount / self._refill


class Mirror:
    """The buckets by the name of their limit; none until a reply names one."""

    def __init__(self) -> None:
        self.buckets: dict[LimitName, Bucket] = {}

    def delay(self, now: float, amounts: Mapping[LimitName, Amounts]) -> float:
        return max((bucket.delay(now, amounts[name]) for name, bucket in self.buckets.items()), default=0.0)

    def book(self, number: int, now: float, amounts: Mapping[LimitName, Amounts]) -> None:
        for name, bucket in self.buckets.items():
            bucket.book(number, now, amounts[name])

    def end(
        self,
        ticket: Ticket,
        now: float,
        limits: Mapping[LimitName, Limit],
        usage: Usage | None,
        *,
        is_refused: bool,
    ) -> None:
        """A request is over, and what its reply says of its cost and of limits; a refused one took nothing."""
        if not self.buckets:
            return
        amounts = _amounts(ticket.cost, usage, is_refused=is_refused)
        for name, bucket in list(self.buckets.items()):
            limit = limits.get(name)
            is_told = limit is not None and limit.limit > 0
            bucket.end(ticket.number, amounts.get(name), ticket.left_at, now, limit if is_told else None)
            if bucket.is_silent:
                del self.buckets[name]

    def begin(
        self,
        ticket: Ticket,
        now: float,
        limits: Mapping[LimitName, Limit],
        later: Sequence[tuple[int, Mapping[LimitName, Amounts]]],
    ) -> None:
        """Mirror the limits that are heard of for the first time, and book what left `later` than this request."""
        for name, limit in limits.items():
            if name not in self.buckets and limit.limit > 0:
                self.buckets[name] = bucket = Bucket(books_most=name not in BOOKED_AS_LIKELY)
                bucket.begin(ticket.number, ticket.left_at, now, limit)
                for number, amounts in later:
                    bucket.book(number, now, amounts[name])

    def explain(
        self, limits: Mapping[LimitName, Limit], amounts: Mapping[LimitName, Amounts], newest: int
    ) -> float | None:
        """Seconds until the bucket holds enough that a refused request found empty; None where none was empty.

        The mirror keeps more back in that bucket from here on.
        """
        empty: list[LimitName] = [
            name for name, limit in limits.items() if name in self.buckets and limit.remaining < amounts[name].most
        ]
        for name in empty:
            self.buckets[name].distrust(newest)
        return max((self.buckets[name].refill_seconds(amounts[name].most) for name in empty), default=None)


def _amounts(cost: Cost, usage: Usage | None, *, is_refused: bool) -> dict[LimitName, Amounts]:
    if is_refused:
        return dict.fromkeys(("requests", "tokens", "input_tokens", "output_tokens"), Amounts(0, 0))
    if usage is None:
        return {}
    return {
        "tokens": Amounts(usage.input + usage.output, usage.input + cost.max_tokens),
        "input_tokens": Amounts(usage.input - usage.cached_input, usage.input),
        "output_tokens": Amounts(usage.output, cost.max_tokens),
    }
