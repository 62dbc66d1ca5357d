"""The server's own buckets, mirrored from what the headers of its replies say."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from potstill.llm.pacing.sizes import Amounts
from potstill.llm.pacing.ticket import Cost, Ticket
from potstill.llm.providers.base import Limit

REFILL = 0.995
"""Of what the server says it refills: clocks differ, and an empty bucket costs more than a full one."""
FIRST_RESERVE = 0.01
LARGEST_RESERVE = 0.2
"""What stays in a bucket, as a share of it, for what arrives out of order. A refusal doubles it."""
ENOUGH_REQUESTS = 20
"""So many charges that the server has told of show whether it charges `max_tokens` or what was used."""
FULL = 0.98
FALL = 0.25
RISE = 1 / 16
"""How far a reply draws the level down or up to what it says."""
SILENT_REPLIES = 1000
"""After so many replies in a row that do not name a limit it is forgotten."""


class Booking(NamedTuple):
    charge: float
    total: Amounts
    """All that was ever booked, up to and with this."""
    charged: float
    """The same as it was charged."""


class Bucket:
    """One bucket. Its level falls with what leaves, rises with time, and is drawn to what replies say.

    A reply says `remaining` as it was when its request arrived: what left after that request, replied or not, is
    subtracted, and what was refilled since is added. Requests overtake each other on the way, so that a single reply may
    be wrong by those beside it: the level moves a part of the way only, and a reply to a request that left before the
    newest one told of can lower it and not raise it.
    """

    def __init__(self) -> None:
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
        self._told_of = -1
        self._told_at = 0.0
        self._told = 0.0
        self._told_total = Amounts(0.0, 0.0)
        self._books_most = True
        self._is_judged = True
        self._judged_of = -1
        """The level counts what requests up to this one really took."""
        self._seen = 0.0
        self._expected = Amounts(0.0, 0.0)
        self._counted = 0
        self._judges_from = -1
        self._silent = 0

    def _level_at(self, now: float) -> float:
        return min(self._capacity, self._level + self._refill * (now - self._as_of))

    def _charge(self, amounts: Amounts) -> float:
        return amounts.most if self._books_most else amounts.likely

    def delay(self, now: float, amounts: Amounts) -> float:
        """Seconds until a request that takes so much may leave; one that is larger than the bucket needs a full one."""
        wanted = min(self._charge(amounts) + self._reserve * self._capacity, self._capacity)
        return (wanted - self._level_at(now)) / self._refill

    def book(self, number: int, now: float, amounts: Amounts) -> None:
        charge = self._charge(amounts)
        if amounts.most > amounts.likely and self._judges_from < 0:
            self._judges_from, self._is_judged = 0, False
        self._total = Amounts(self._total.likely + amounts.likely, self._total.most + amounts.most)
        self._charged += charge
        self._booked[number] = Booking(charge, self._total, self._charged)
        self._level, self._as_of = self._level_at(now) - charge, now

    def end(self, number: int, amounts: Amounts | None, left_at: float, now: float, limit: Limit | None) -> None:
        """A request is over.

        Args:
            amounts: what it took, by either way of charging, where that is known.
            limit: what its reply says.
        """
        booking = self._booked.pop(number, None)
        if booking is not None and amounts is not None and number > self._judged_of:
            self._level += booking.charge - self._charge(amounts)
        if limit is None:
            self._silent += 1
        elif booking is not None:
            self._silent = 0
            self._hear(number, booking, left_at, now, limit)

    def begin(self, number: int, left_at: float, now: float, limit: Limit) -> None:
        """The first that is heard of this limit."""
        self._hear(number, Booking(0.0, self._total, self._charged), left_at, now, limit)

    @property
    def is_silent(self) -> bool:
        return self._silent > SILENT_REPLIES

    def _hear(self, number: int, booking: Booking, left_at: float, now: float, limit: Limit) -> None:
        self._measure(limit)
        is_first, is_newest = self._told_of < 0, number > self._told_of
        if is_newest:
            if not is_first:
                refilled = self._refill / REFILL * (left_at - self._told_at)
                self._judge(booking.total, self._told + refilled - limit.remaining, limit.remaining, number)
            self._told, self._told_at, self._told_of, self._told_total = limit.remaining, left_at, number, booking.total
        since = self._charged - booking.charged
        said = min(self._capacity, limit.remaining + self._refill * (now - left_at) - since)
        level = self._level_at(now)
        if is_first or (is_newest and not self._is_judged):
            self._level, self._as_of, self._judged_of = said, now, number
        elif said < level or is_newest:
            gain = FALL if said < level else RISE
            self._level, self._as_of = level + gain * (said - level), now

    def _measure(self, limit: Limit) -> None:
        """How large the bucket is and how fast it fills. A reset may be rounded or another clock's: the least counts."""
        rate = limit.limit / 60
        self._refill = rate * REFILL
        self._most_remaining = max(self._most_remaining, limit.remaining)
        if limit.reset_seconds is not None:
            self._fullest = min(self._fullest, limit.remaining + rate * limit.reset_seconds)
        known = min(self._fullest, limit.limit) if limit.reset_seconds is not None else 0.0
        self._capacity = max(self._most_remaining, known)

    def _judge(self, total: Amounts, charged: float, remaining: float, number: int) -> None:
        """Compare what the server took with what each way of charging would have taken."""
        if self._told_of < self._judges_from or remaining >= FULL * self._capacity:
            self._forget_charges()  # what overflows looks like what was not charged
            return
        self._seen += charged
        likely, most = self._expected
        self._expected = Amounts(
            likely + total.likely - self._told_total.likely, most + total.most - self._told_total.most
        )
        self._counted += number - self._told_of
        if self._counted >= ENOUGH_REQUESTS:
            if not self._is_judged:
                self._judged_of = number
            self._is_judged = True
            self._books_most = self._seen > (self._expected.likely + self._expected.most) / 2
            self._forget_charges()

    def _forget_charges(self) -> None:
        self._seen, self._expected, self._counted = 0.0, Amounts(0.0, 0.0), 0

    def distrust(self, newest: int) -> None:
        """The server refused what the mirror allowed: keep more back, and book the most from here on until it is disproved."""
        if self._told_of >= self._judges_from:  # one wave of refusals counts once
            self._reserve = min(2 * self._reserve, LARGEST_RESERVE)
        self._books_most = True
        if self._judges_from >= 0:
            self._judges_from, self._is_judged = newest + 1, False
        self._forget_charges()

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

    def end(
        self,
        ticket: Ticket,
        now: float,
        limits: Mapping[str, Limit],
        usage: tuple[int, int] | None,
        *,
        is_refused: bool,
    ) -> None:
        """A request is over, and what its reply says of its cost and of limits; a refused one took nothing."""
        amounts = _amounts(ticket.cost, usage, is_refused=is_refused)
        for name, bucket in list(self.buckets.items()):
            bucket.end(ticket.number, amounts.get(name), ticket.left_at, now, limits.get(name))
            if bucket.is_silent:
                del self.buckets[name]

    def begin(
        self, ticket: Ticket, now: float, limits: Mapping[str, Limit], later: Sequence[tuple[int, Mapping[str, Amounts]]]
    ) -> None:
        """Mirror the limits that are heard of for the first time, and book what left `later` than this request."""
        for name, limit in limits.items():
            if name not in self.buckets and limit.limit > 0:
                self.buckets[name] = bucket = Bucket()
                bucket.begin(ticket.number, ticket.left_at, now, limit)
                for number, amounts in later:
                    bucket.book(number, now, amounts[name])

    def explain(self, limits: Mapping[str, Limit], amounts: Mapping[str, Amounts], newest: int) -> float | None:
        """Seconds until the bucket holds enough that a refused request found empty; None where none was empty.

        The mirror keeps more back in that bucket from here on.
        """
        empty = [name for name, limit in limits.items() if name in self.buckets and limit.remaining < amounts[name].most]
        for name in empty:
            self.buckets[name].distrust(newest)
        return max((self.buckets[name].refill_seconds(amounts[name].most) for name in empty), default=None)


def _amounts(cost: Cost, usage: tuple[int, int] | None, *, is_refused: bool) -> dict[str, Amounts]:
    if is_refused:
        return dict.fromkeys(("requests", "tokens", "input_tokens", "output_tokens"), Amounts(0, 0))
    if usage is None:
        return {}
    prompt, completion = usage
    return {
        "tokens": Amounts(prompt + completion, prompt + cost.max_tokens),
        "input_tokens": Amounts(prompt, prompt),
        "output_tokens": Amounts(completion, cost.max_tokens),
    }
