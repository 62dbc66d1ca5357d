"""A rate-limited server and a virtual clock: minutes of traffic in a fraction of a second, the same each time."""

import asyncio
import math
import random
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import pytest

from potstill.llm.limiter import Cost, Limiter
from potstill.llm.providers.base import Limit
from potstill.records import Usage
from tests.virtual_time import VirtualLoop, run_virtually


class Reply(NamedTuple):
    usage: Usage | None
    limits: Mapping[str, Limit]
    is_refused: bool = False
    retry_after_seconds: float | None = None


class Server:
    """Token buckets that hold so many seconds, full at first, and charge at arrival.

    Args:
        per_minute: by the name of the limit.
        charge: "used" for the tokens of prompt and completion, "most" for prompt and max_tokens.
        cached: the share of each prompt that lies in the provider's cache; charges_cached: and counts as input all the same.
        latency: draws how long a request takes; a tenth of it is the way there, which varies by up to 5 ms more.
        tells: replies carry the limits; tells_reset: and when the buckets are full again.
        retry_after: seconds that a refusal asks for, "exact" for those until there is room, or None for none.
        refuses_at_once: a refusal needs no more than the way, an answer the whole latency.
        by_chance: the share of requests that are refused whatever the pace.
        down: seconds between which every request is refused.
    """

    def __init__(
        self,
        per_minute: Mapping[str, float],
        holds_seconds: float,
        latency: Callable[[random.Random], float],
        *,
        charge: str = "used",
        cached: float = 0.0,
        charges_cached: bool = False,
        tells: bool = True,
        tells_reset: bool = True,
        retry_after: float | Literal["exact"] | None = 1.0,
        refuses_at_once: bool = False,
        by_chance: float = 0.0,
        down: tuple[float, float] = (0.0, 0.0),
        sizes: Callable[[random.Random], tuple[int, int]] = lambda draw: (
            draw.randint(50, 150),
            min(500, round(draw.lognormvariate(4.5, 0.5))),
        ),
        max_tokens: int = 500,
        seed: int = 1,
    ) -> None:
        self.rate = {name: limit / 60 for name, limit in per_minute.items()}
        self.capacity = {name: rate * holds_seconds for name, rate in self.rate.items()}
        self.level = dict(self.capacity)
        self.random = random.Random(seed)
        self.cached, self.charges_cached = cached, charges_cached
        self.latency, self.charge, self.tells, self.tells_reset = latency, charge, tells, tells_reset
        self.retry_after, self.by_chance, self.sizes, self.max_tokens = retry_after, by_chance, sizes, max_tokens
        self.down, self.refuses_at_once = down, refuses_at_once
        self.changed_at = 0.0
        self.refused = 0
        self.served = 0
        self.charged = dict.fromkeys(self.rate, 0.0)
        self.arrivals: list[float] = []
        self.refusals: list[float] = []

    async def ask(self, size: tuple[int, int], loop: asyncio.AbstractEventLoop) -> Reply:
        latency = self.latency(self.random)
        there = 0.1 * latency + self.random.uniform(0, min(0.005, latency / 4))
        await asyncio.sleep(there)
        reply = self.arrive(size, loop.time())
        rest = there if reply.is_refused and self.refuses_at_once else latency - there
        await asyncio.sleep(max(0.0, rest))
        return reply

    def arrive(self, size: tuple[int, int], now: float) -> Reply:
        for name, rate in self.rate.items():
            self.level[name] = min(self.capacity[name], self.level[name] + rate * (now - self.changed_at))
        self.changed_at = now
        self.arrivals.append(now)
        tokens = size[0] + (size[1] if self.charge == "used" else self.max_tokens)
        output = size[1] if self.charge == "used" else self.max_tokens
        cached = round(size[0] * self.cached)
        given = size[0] if self.charges_cached else size[0] - cached
        costs = {"requests": 1, "tokens": tokens, "input_tokens": given, "output_tokens": output}
        is_full = any(self.level[name] < costs[name] for name in self.rate)
        is_down = self.down[0] <= now < self.down[1]
        if is_full or is_down or self.random.random() < self.by_chance:
            self.refused += 1
            self.refusals.append(now)
            missing = max((costs[name] - self.level[name]) / rate for name, rate in self.rate.items())
            asked = max(missing, 0.001) if self.retry_after == "exact" else self.retry_after
            return Reply(None, self._limits(), is_refused=True, retry_after_seconds=asked)
        for name in self.rate:
            self.level[name] -= costs[name]
            self.charged[name] += costs[name]
        self.served += 1
        return Reply(Usage(input=size[0], cached_input=cached, output=size[1]), self._limits())

    def _limits(self) -> dict[str, Limit]:
        if not self.tells:
            return {}
        return {
            name: Limit(
                rate * 60,
                math.floor(self.level[name]),
                (self.capacity[name] - self.level[name]) / rate if self.tells_reset else None,
            )
            for name, rate in self.rate.items()
        }

    def used(self, name: str) -> float:
        """The share of what it would have allowed between the first and the last arrival."""
        span = self.arrivals[-1] - self.arrivals[0]
        return self.charged[name] / (self.capacity[name] + self.rate[name] * span)

    @property
    def refused_share(self) -> float:
        return self.refused / (self.served + self.refused)


def drive(
    server: Server, requests: int, in_flight: int, *, rpm: float | None = None, tpm: float | None = None
) -> float:
    """Ask so many, each again until it is answered, the first one alone; returns the seconds it took."""

    async def run(loop: VirtualLoop) -> float:
        limiter = Limiter(rpm, tpm, clock=loop.time)
        sizes, jitter = random.Random(7), random.Random(8)
        wanted = iter([server.sizes(sizes) for _ in range(requests)])

        async def answer(size: tuple[int, int]) -> None:
            while True:
                ticket = await limiter.acquire(Cost(size[0], server.max_tokens))
                reply = await server.ask(size, loop)
                limiter.settle(
                    ticket,
                    limits=reply.limits,
                    usage=reply.usage,
                    is_rate_limited=reply.is_refused,
                    retry_after_seconds=reply.retry_after_seconds,
                )
                if not reply.is_refused:
                    return
                asked = reply.retry_after_seconds or 0.5
                await asyncio.sleep(max(asked, jitter.uniform(0.0, 0.5)) if server.retry_after == "exact" else asked)

        async def work() -> None:
            for size in wanted:
                await answer(size)

        await answer(next(wanted))
        await asyncio.gather(*(work() for _ in range(in_flight)))
        return loop.time()

    return run_virtually(run)


def lognormal(median: float) -> Callable[[random.Random], float]:
    return lambda draw: draw.lognormvariate(math.log(median), 0.5)


def constant(seconds: float) -> Callable[[random.Random], float]:
    return lambda _: seconds


def seeds(count: int, *, at_once: int) -> list[Any]:
    """So many; the unit tier runs the first ones, `make drill` all."""
    return [pytest.param(seed, marks=[pytest.mark.drill] if seed > at_once else []) for seed in range(1, count + 1)]


def drilled(*values: Any) -> list[Any]:
    """Values that `make drill` alone runs."""
    return [pytest.param(value, marks=pytest.mark.drill) for value in values]


LATENCIES = {"20 ms": constant(0.02), "200 ms": constant(0.2), "2 s": constant(2.0), "lognormal": lognormal(0.2)}


def test_the_server_allows_its_bucket_and_what_is_refilled_and_no_more() -> None:
    server = Server({"requests": 600}, 5, constant(0.0))
    replies = [server.arrive((10, 10), now) for now in [0.0] * 60 + [1.0] * 20]
    assert [reply.is_refused for reply in replies] == [False] * 50 + [True] * 10 + [False] * 10 + [True] * 10
    assert replies[19].limits["requests"] == Limit(600, 30, 2.0)


def test_a_server_that_charges_the_most_takes_max_tokens_for_every_request() -> None:
    server = Server({"tokens": 60_000}, 60, constant(0.0), charge="most", max_tokens=500)
    assert server.arrive((100, 1), 0.0).limits["tokens"].remaining == 59_400


def test_virtual_minutes_pass_in_their_order() -> None:
    async def wait(loop: VirtualLoop) -> list[float]:
        times: list[float] = []

        async def sleep(seconds: float) -> None:
            await asyncio.sleep(seconds)
            times.append(loop.time())

        await asyncio.gather(sleep(3600), sleep(60), sleep(0.5))
        return times

    assert run_virtually(wait) == [0.5, 60, 3600]
