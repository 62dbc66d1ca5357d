"""The pace where a server tells no limits: found from its refusals alone."""

from dataclasses import dataclass

from potstill.llm.pacing.ticket import Ticket

FIRST_PER_SECOND = 8.0
"""Until the first reply."""
FIRST_WINDOW = 16.0
"""So many requests a latency after it; each success adds one more ..."""
WIDE_WINDOW = 64.0
WIDENING = 0.2
SURE = 350
"""... and from `WIDE_WINDOW` on that share of one, until so many successes say that it is no bucket of seconds that gives."""
SPARE = 4.0
"""A pace that allows so many times what has been in flight holds nothing back any more."""
SLOWEST_PER_SECOND = 0.5
BURST_SECONDS = 0.01
"""What a late event loop may make up: no timer is needed for shorter waits."""

POLICED = 0.2
"""From this share of refusals among the requests beside a refused one it is the rate that is refused; below, it may be chance."""
SURELY_POLICED = 0.4
"""The same where refusals have come by chance."""
ENOUGH = 8
"""So many requests must have been beside it for that share to mean anything."""
ENOUGH_APART = 20
"""Where waves are smaller, so many requests before and beside several refused ones."""
FADING = 5
"""Beyond so many times that number the older ones count half."""
CLEAN = 40
"""A refusal after fewer successes than this says that lowering the pace the last time did not help."""
BY_CHANCE = 4
"""After so many of those in a row, each after another step down, refusals count as chance and the steps are taken back ..."""
UNLIKELY = 200
"""... until so many successes in a row say otherwise."""
BACK_OFF = 0.92
"""Where the pace starts again, as a share of the rate that broke ..."""
RECOVERY = 100
"""... which it is back at after so many successes."""
PROBING = 0.0003
"""The share that each success beyond adds."""
FAR = 2000
"""After so many it grows with their cube: the limit has been raised."""
NEAR = 300
"""The same where the pace is a guess, since too few requests were beside the refused one."""
BLIND = 0.1
"""What is left of the pace where every request of a wave was refused."""


@dataclass(slots=True)
class Wave:
    """The requests beside the first refused one: they left after it and before it was known. They count as one event."""

    first: int
    last: int
    first_left_at: float
    per_second: float
    """The rate at which they left."""
    clean: int
    """Successes since the event before."""
    accepted_per_second: float | None
    """Between the first refused of the wave before and of this one. The server's bucket was empty at both: its rate."""
    anchor: float | None
    grown: int
    window: float
    seconds: float
    """The state before."""
    accepted: int = 0
    refused: int = 1

    @property
    def beside(self) -> tuple[int, int]:
        """How many requests beside the first refused one are known of, and how many of them were refused."""
        return self.accepted + self.refused - 1, self.refused - 1

    @property
    def is_unclear(self) -> bool:
        """Too little is known of it, and more is to come."""
        return self.last - self.first >= ENOUGH > self.beside[0]


class Congestion:
    """A slow start by successes, then additive increase about the rate that broke last, and one decrease a wave of refusals.

    CUBIC's memory (RFC 9438) on a rate; the rate of a policed wave is what was accepted of it, as BBR takes it from
    intervals with a fifth of loss (Linux, net/ipv4/tcp_bbr.c, long-term bandwidth sampling). A server that refuses some
    requests by chance is not slowed down: beside a chance refusal few are refused, and a lower pace does not help.

    Args:
        is_open: hold nothing back until something is refused.
    """

    def __init__(self, *, is_open: bool) -> None:
        self._is_open = is_open
        self._window = FIRST_WINDOW
        self._anchor: float | None = None
        self._grown = 0
        self._far = FAR
        self._latency: float | None = None
        self._seconds = 1 / FIRST_PER_SECOND
        self._next = float("-inf")
        self._peak = 1
        self._clean = 0
        self._chances = 0
        self._before_steps = 0.0
        """Requests a second before the first of the steps down."""
        self._wave: Wave | None = None
        self._apart = (0.0, 0.0)
        """Requests of small waves, those before them included, and how many were refused."""
        self._refused_since_wave = 0

    @property
    def next_at(self) -> float:
        """When the next request may leave."""
        return float("-inf") if self._is_open else self._next

    @property
    def is_by_chance(self) -> bool:
        """Refusals do not depend on the pace: pausing for them helps nobody."""
        return self._chances >= BY_CHANCE

    def open(self) -> None:
        """Something better sets the pace."""
        if self._wave is None:
            self._is_open = True

    def book(self, now: float, in_flight: int) -> None:
        self._peak = max(self._peak, in_flight)
        if not self._is_open:
            self._next = max(self._next, now - BURST_SECONDS) + self._seconds

    def accept(self, ticket: Ticket, now: float) -> None:
        """A request was answered."""
        latency = now - ticket.left_at
        self._latency = latency if self._latency is None else self._latency + (latency - self._latency) / 8
        wave = self._wave
        if wave is None or ticket.number > wave.last:
            self._clean += 1
            self._grow()
        elif ticket.number > wave.first:
            wave.accepted += 1
            self._respond(wave)
        if not self._is_open:
            self._set_pace()

    def _grow(self) -> None:
        if self._anchor is None:
            is_wary = self._window >= WIDE_WINDOW and self._clean < SURE and not self.is_by_chance
            self._window += WIDENING if is_wary else 1
        else:
            self._grown += 1

    def refuse(self, ticket: Ticket, now: float, newest: int, in_flight: int) -> None:
        """A request met the limiter; `newest` is the number of the last one that left."""
        wave = self._wave
        if wave is None or ticket.number > wave.last:
            self._refused_since_wave += 1
            wave = self._wave = self._begin(ticket, now, newest, in_flight)
        elif ticket.number > wave.first:
            self._refused_since_wave += 1
            wave.refused += 1
        self._is_open = False
        self._respond(wave)
        self._set_pace()

    def _begin(self, ticket: Ticket, now: float, newest: int, in_flight: int) -> Wave:
        beside = newest - ticket.number
        waited = now - ticket.left_at
        per_second = beside / waited if beside >= ENOUGH and waited > 0 else self._rate_now(in_flight, waited)
        before = self._wave
        accepted_per_second = None
        if before is not None:
            if before.is_unclear:
                self._anchor, self._grown = before.anchor, before.grown
            self._remember(before)
            sent = ticket.number - before.first
            seconds = max(ticket.left_at - before.first_left_at, 1e-9)
            accepted = sent - self._refused_since_wave + 1
            accepted_per_second = accepted / seconds if accepted >= ENOUGH else None
        wave = Wave(
            ticket.number,
            newest,
            ticket.left_at,
            per_second,
            self._clean,
            accepted_per_second,
            self._anchor,
            self._grown,
            self._window,
            self._seconds,
        )
        self._clean, self._refused_since_wave = 0, 1
        return wave

    def _remember(self, wave: Wave) -> None:
        """Count a wave that is over: as policed, as chance, or with the next ones where it was too small to tell."""
        if self._is_policed(wave):
            self._chances, self._apart = 0, (0, 0)
            return
        known, refused = wave.beside
        if known < ENOUGH:
            requests, refusals = self._apart
            fade = 0.5 if requests > FADING * ENOUGH_APART else 1.0
            self._apart = (fade * requests + known + min(wave.clean, CLEAN) + 1, fade * refusals + refused + 1)
        if wave.clean >= (UNLIKELY if self.is_by_chance else CLEAN):
            self._chances = 0
            return
        if wave.clean + wave.accepted == 0:
            return  # all are refused: that is no chance
        if self._chances == 0:
            self._before_steps = max(1 / wave.seconds, wave.per_second)
        self._chances += 1
        if self._chances == BY_CHANCE:
            self._anchor, self._window = None, max(self._window, self._before_steps * (self._latency or 0.0))

    def _rate_now(self, in_flight: int, waited: float) -> float:
        """What leaves a second, by Little's law or by the pace."""
        latency = self._latency or max(waited, 1e-3)
        flow = max(in_flight, 1) / latency
        return flow if self._is_open else min(flow, 1 / self._seconds)

    def _is_policed(self, wave: Wave) -> bool:
        known, refused = wave.beside
        if known >= ENOUGH or self.is_by_chance:
            return known >= ENOUGH and refused >= (SURELY_POLICED if self.is_by_chance else POLICED) * known
        requests, refusals = self._apart
        return requests >= ENOUGH_APART and refusals >= POLICED * requests

    def _respond(self, wave: Wave) -> None:
        """Set the pace after a refusal, by what is known of its wave so far."""
        known, refused = wave.beside
        self._anchor, self._grown, self._window, self._far = wave.anchor, wave.grown, wave.window, FAR
        if self._is_policed(wave):
            self._slow_down(wave)
        elif self.is_by_chance:
            return
        elif wave.is_unclear:
            self._anchor, self._grown = wave.per_second / 2, 0
        elif wave.anchor is None or wave.clean == 0:
            self._guess(wave)
        elif wave.clean >= CLEAN:
            self._anchor = wave.per_second * (1 - refused / max(known, ENOUGH))
            self._anchor = min(max(self._anchor, wave.accepted_per_second or 0.0), wave.per_second)
            self._grown = 0
        else:
            self._anchor = BACK_OFF * wave.anchor

    def _guess(self, wave: Wave) -> None:
        """Too little was beside the refused request, and the rate was not known before."""
        if wave.accepted_per_second is None and wave.clean == 0:
            self._start_again(wave)
            return
        self._anchor = wave.per_second / 2 if wave.accepted_per_second is None else wave.accepted_per_second
        self._grown, self._far = 0, NEAR

    def _start_again(self, wave: Wave) -> None:
        """Nothing is accepted."""
        sent = wave.per_second * (self._latency or 0.0)
        self._anchor, self._window = None, max(BLIND * min(wave.window, sent), 0.01)

    def _slow_down(self, wave: Wave) -> None:
        steady = wave.accepted_per_second
        self._grown = 0
        if steady is not None and 0 < steady < wave.per_second:
            self._anchor = steady
        elif wave.accepted == 0 and wave.refused > ENOUGH:
            self._start_again(wave)
        else:
            beside = wave.accepted + wave.refused
            self._anchor = wave.per_second * (max(wave.accepted, 1) / beside if beside > ENOUGH else 0.5)
            self._far = FAR if wave.accepted >= ENOUGH else NEAR

    def _set_pace(self) -> None:
        latency = max(self._latency or 0.0, 1e-6)
        if self._anchor is not None:
            beyond = max(0, self._grown - RECOVERY)
            grown = (
                BACK_OFF
                + (1 - BACK_OFF) * min(1, self._grown / RECOVERY)
                + PROBING * beyond
                + (beyond / self._far) ** 3
            )
            rate = self._anchor * grown
        elif self._latency is not None:
            rate = self._window / latency
        else:
            rate = FIRST_PER_SECOND
        self._seconds = 1 / max(rate, SLOWEST_PER_SECOND)
        used = self._wave.per_second if self._wave is not None else self._peak / latency
        self._is_open = self._clean > WIDE_WINDOW and rate > SPARE * used
