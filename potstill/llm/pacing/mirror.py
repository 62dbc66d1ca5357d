"""The server's own buckets, mirrored from what the headers of its replies say."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from potstill.llm.pacing.sizes import Amounts
from potstill.llm.providers.base import Limit

REFILL = 0.995
"""Of what the server says it refills: clocks differ, and an empty bucket costs more than a full one."""
FIRST_RESERVE = 0.01
LARGEST_RESERVE = 0.2
"""What stays in a bucket, as a share of it, for what arrives out of order. A refusal doubles it."""
ENOUGH_REQUESTS = 20
"""So many charges that the server has told of show whether it charges `max_tokens` or what was used."""
FULL = 0.98
SILENT_REPLIES = 1000
"""After so many replies in a row that do not name a limit it is forgotten."""


class Booking(NamedTuple):
    charge: float
    overflow: float
    """What the full bucket had lost just before."""
    amounts: Amounts


class Bucket:
    """One bucket: `level = what the newest reply says remains + refill since it left - what left after it`.

    Servers measure at a request's arrival, so times and order are those of leaving, replied or not: with an equal way
    for all requests this is exact. A reply to a request that left before the newest one told of changes nothing.
    """

    def __init__(self) -> None:
        self._refill = 0.0
        self._capacity = 0.0
        self._remaining = 0.0
        self._told_at = 0.0
        self._told_of = -1
        self._most_remaining = 0.0
        self._fullest = float("inf")
        self._sent: OrderedDict[int, Booking] = OrderedDict()
        """What left after the request that the newest reply answers, in order."""
        self._taken = 0.0
        self._reserve = FIRST_RESERVE
        self._books_most = True
        self._charged = 0.0
        self._expected = Amounts(0.0, 0.0)
        self._counted = 0
        self._judges_from = -1
        self._silent = 0

    def _level(self, now: float) -> float:
        """May be above the capacity."""
        return self._remaining + self._refill * (now - self._told_at) - self._taken

    def delay(self, now: float, amounts: Amounts) -> float:
        """Seconds until a request that takes so much may leave; one that is larger than the bucket needs a full one."""
        amount = amounts.most if self._books_most else amounts.likely
        wanted = min(amount + self._reserve * self._capacity, self._capacity)
        return (wanted - min(self._level(now), self._capacity)) / self._refill

    def book(self, number: int, now: float, amounts: Amounts) -> None:
        overflow = max(0.0, self._level(now) - self._capacity)
        charge = amounts.most if self._books_most else amounts.likely
        self._sent[number] = Booking(charge, overflow, amounts)
        self._taken += charge + overflow

    def correct(self, number: int, charge: float) -> None:
        """What a request cost that the newest reply does not cover."""
        if (booking := self._sent.get(number)) is not None:
            self._taken += charge - booking.charge
            self._sent[number] = booking._replace(charge=charge, amounts=Amounts(charge, charge))

    def hear(self, number: int, left_at: float, limit: Limit) -> None:
        """Take in what the reply to a request says."""
        self._silent = 0
        if number <= self._told_of:
            return
        self._measure(limit)
        taken, requests = Amounts(0.0, 0.0), 0
        while self._sent and next(iter(self._sent)) <= number:
            _, booking = self._sent.popitem(last=False)
            self._taken -= booking.charge + booking.overflow
            taken = Amounts(taken.likely + booking.amounts.likely, taken.most + booking.amounts.most)
            requests += 1
        if not self._sent:
            self._taken = 0.0  # no rounding errors are kept
        if self._told_of >= 0:
            refilled = self._refill / REFILL * (left_at - self._told_at)
            self._judge(taken, requests, self._remaining + refilled - limit.remaining, limit.remaining)
        self._remaining, self._told_at, self._told_of = limit.remaining, left_at, number

    def _measure(self, limit: Limit) -> None:
        """How large the bucket is and how fast it fills. A reset may be rounded or another clock's: the least counts."""
        rate = limit.limit / 60
        self._refill = rate * REFILL
        self._most_remaining = max(self._most_remaining, limit.remaining)
        if limit.reset_seconds is not None:
            self._fullest = min(self._fullest, limit.remaining + rate * limit.reset_seconds)
        known = self._fullest if self._fullest < limit.limit else limit.limit
        self._capacity = max(self._most_remaining, known if limit.reset_seconds is not None else 0.0)

    def _judge(self, taken: Amounts, requests: int, charged: float, remaining: float) -> None:
        """Compare what the server took with what each way of charging would have taken."""
        if self._told_of < self._judges_from:
            return
        if remaining >= FULL * self._capacity:  # what overflowed looks like what was not charged
            self._forget_charges()
            return
        self._charged += charged
        self._expected = Amounts(self._expected.likely + taken.likely, self._expected.most + taken.most)
        self._counted += requests
        if self._counted >= ENOUGH_REQUESTS:
            self._books_most = self._charged > (self._expected.likely + self._expected.most) / 2
            self._forget_charges()

    def _forget_charges(self) -> None:
        self._charged, self._expected, self._counted = 0.0, Amounts(0.0, 0.0), 0

    def distrust(self, newest: int) -> None:
        """The server refused what the mirror allowed: keep more back, and book the most from here on until it is disproved."""
        if self._told_of >= self._judges_from:  # one wave of refusals counts once
            self._reserve = min(2 * self._reserve, LARGEST_RESERVE)
        self._books_most = True
        self._judges_from = newest + 1
        self._forget_charges()

    def fall_silent(self) -> bool:
        """Count a reply that does not name this limit; True where it should be forgotten."""
        self._silent += 1
        return self._silent > SILENT_REPLIES

    def refill_seconds(self, amount: float) -> float:
        return amount / self._refill


class Mirror:
    """The buckets by the name of their limit; none until a reply names one."""

    def __init__(self) -> None:
        self.buckets: dict[str, Bucket] = {}

    def delay(self, now: float, amounts: Mapping[str, Amounts]) -> float:
        return max((bucket.delay(now, amounts[name]) for name, bucket in self.buckets.items()), default=0.0)

    def book(self, number: int, now: float, amounts: Mapping[str, Amounts]) -> None:
        for name, bucket in self.buckets.items():
            bucket.book(number, now, amounts[name])

    def hear(
        self,
        number: int,
        left_at: float,
        limits: Mapping[str, Limit],
        in_flight: Iterable[tuple[int, float, Mapping[str, Amounts]]],
    ) -> None:
        """Take in a reply's limits; what is in flight is booked where a limit is heard of for the first time."""
        for name, limit in limits.items():
            if limit.limit <= 0:
                continue
            if name not in self.buckets:
                self.buckets[name] = bucket = Bucket()
                bucket.hear(number, left_at, limit)
                for other, other_left_at, amounts in in_flight:
                    if other > number:
                        bucket.book(other, other_left_at, amounts[name])
            else:
                self.buckets[name].hear(number, left_at, limit)

    def correct(
        self, number: int, usage: tuple[int, int] | None, limits: Mapping[str, Limit], *, is_refused: bool
    ) -> None:
        """Book what a request cost where its reply does not say what remains; a refused one costs nothing."""
        silent = [name for name in self.buckets if name not in limits]
        charges = _charges(usage, is_refused=is_refused)
        for name in silent:
            if name in charges:
                self.buckets[name].correct(number, charges[name])
            if self.buckets[name].fall_silent():
                del self.buckets[name]

    def explain(self, limits: Mapping[str, Limit], amounts: Mapping[str, Amounts], newest: int) -> float | None:
        """Seconds until the bucket holds enough that a refused request found empty; None where none was empty.

        The mirror keeps more back in that bucket from here on.
        """
        empty = [name for name, limit in limits.items() if name in self.buckets and limit.remaining < amounts[name].most]
        for name in empty:
            self.buckets[name].distrust(newest)
        return max((self.buckets[name].refill_seconds(amounts[name].most) for name in empty), default=None)


def _charges(usage: tuple[int, int] | None, *, is_refused: bool) -> dict[str, float]:
    if is_refused:
        return {"requests": 0, "tokens": 0, "input_tokens": 0, "output_tokens": 0}
    if usage is None:
        return {}
    return {"tokens": sum(usage), "input_tokens": usage[0], "output_tokens": usage[1]}
