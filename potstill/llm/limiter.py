"""Pace: when each request of a run may leave, so that no limit is exceeded and none is left unused."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from potstill.llm.pacing.caps import Caps
from potstill.llm.pacing.congestion import Congestion
from potstill.llm.pacing.mirror import Mirror
from potstill.llm.pacing.sizes import Amounts, Sizes
from potstill.llm.pacing.ticket import Cost, Ticket
from potstill.llm.providers.base import Limit, LimitName
from potstill.records import Usage

__all__ = ["Cost", "Limiter", "Ticket"]

PAUSE_SECONDS = 1.0
"""After a refusal that names no time."""
LONGEST_NAP_SECONDS = 0.25
"""A wait for a server's bucket is looked at again so often: a reply may have shortened it."""
SHORTEST_WAIT_SECONDS = 1e-6


class Limiter:
    """One pace for all requests of a run, on one event loop. First come, first served.

    Three things hold a request back, and all must let it go: the caps of the recipe; a mirror of the server's buckets
    where its replies tell of them; and where neither sets a pace, one that is found from successes and refusals
    (see `potstill.llm.pacing`). Besides, a refusal pauses all.

    The first request of a run should be waited for before the second is asked: its reply may bring the limits.

    Args:
        rpm: requests a minute, or None.
        tpm: tokens a minute, counted as prompt and mean completion, or None.
        clock, sleep: injected by tests; seconds.
    """

    def __init__(
        self,
        rpm: float | None = None,
        tpm: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._caps = Caps(rpm, tpm)
        self._mirror = Mirror()
        self._congestion = Congestion(is_open=self._caps.are_set)
        self._sizes = Sizes()
        self._turn = asyncio.Lock()
        self._in_flight: dict[int, Ticket] = {}
        self._number = 0
        self._paused_until = 0.0
        self._fraction = 1.0

    def divide(self, rpm: float | None, tpm: float | None, fraction: float) -> None:
        """Keep to other caps from now on, and take so much of the server's buckets: other processes take the rest.

        Each process is told of whole buckets. Mirrored at its fraction they fall, where all take the same, just as it
        books; where others take less, more remains, and it may take that.
        """
        self._caps.change(self._clock(), rpm, tpm)
        self._fraction = fraction

    async def acquire(self, cost: Cost) -> Ticket:
        """Return when a request may leave, and book it; it should leave at once. `settle` or `release` must follow."""
        came_at = self._clock()
        async with self._turn:
            while True:
                now = self._clock()
                amounts = self._sizes.amounts(cost) if self._mirror.buckets else {}
                start = max(self._paused_until, self._caps.next_at, self._congestion.next_at)
                delay = max(start - now, self._mirror.delay(now, amounts))
                if delay <= SHORTEST_WAIT_SECONDS:
                    return self._leave(cost, amounts, came_at, now)
                await self._sleep(min(delay, LONGEST_NAP_SECONDS) if amounts else delay)

    def _leave(self, cost: Cost, amounts: Mapping[LimitName, Amounts], came_at: float, now: float) -> Ticket:
        ticket = Ticket(self._number, cost, now)
        self._number += 1
        self._in_flight[ticket.number] = ticket
        if self._caps.are_set:
            tokens = self._sizes.prompt(cost) + self._sizes.completion(cost)
            ticket.turn = self._caps.book(now, max(came_at, self._paused_until), tokens)
        self._congestion.book(now, len(self._in_flight))
        self._mirror.book(ticket.number, now, amounts)
        return ticket

    def settle(
        self,
        ticket: Ticket,
        *,
        limits: Mapping[LimitName, Limit],
        usage: Usage | None,
        is_rate_limited: bool,
        retry_after_seconds: float | None,
    ) -> None:
        """Learn from the end of a request: a reply, an error, or its being cancelled.

        Args:
            ticket: the request's; a second end of the same request changes nothing.
            limits: what the reply's headers said; empty where nothing did.
            usage: what it took, where the reply told.
            is_rate_limited: the server refused it for its pace, not for money.
            retry_after_seconds: what such a refusal asked for; all requests pause for so long.
        """
        if self._in_flight.pop(ticket.number, None) is None:
            return
        now = self._clock()
        if self._fraction != 1:
            limits = {name: limit.scaled(self._fraction) for name, limit in limits.items()}
        if usage is not None:
            self._sizes.learn(ticket.cost, usage)
        self._mirror.end(ticket, now, limits, usage, is_refused=is_rate_limited)
        if not limits.keys() <= self._mirror.buckets.keys():
            later = [other for other in self._in_flight.values() if other.number > ticket.number]
            self._mirror.begin(ticket, now, limits, [(it.number, self._sizes.amounts(it.cost)) for it in later])
            self._congestion.open()
        if is_rate_limited:
            self._refuse(ticket, limits, retry_after_seconds, now)
        elif usage is not None:
            self._congestion.accept(ticket, now)

    def _refuse(
        self, ticket: Ticket, limits: Mapping[LimitName, Limit], retry_after_seconds: float | None, now: float
    ) -> None:
        refill_seconds = self._mirror.explain(limits, self._sizes.amounts(ticket.cost), self._number - 1)
        if refill_seconds is None:
            self._congestion.refuse(ticket, now, self._number - 1, len(self._in_flight) + 1)
            if self._congestion.is_by_chance:
                return
            self.pause(max(retry_after_seconds or 0.0, PAUSE_SECONDS))
            return
        self.pause(min(refill_seconds, PAUSE_SECONDS) if retry_after_seconds is None else retry_after_seconds)

    def release(self, ticket: Ticket) -> None:
        """Give back what was booked for a request that did not leave after all; best at once, before the next one leaves."""
        if self._in_flight.pop(ticket.number, None) is not None:
            if ticket.turn is not None:
                self._caps.give_back(ticket.turn)
            self._mirror.end(ticket, self._clock(), {}, None, is_refused=True)

    def pause(self, seconds: float) -> None:
        """Let no request leave for so long."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)
