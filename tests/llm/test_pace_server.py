"""A rate-limited server and a virtual clock: minutes of traffic in a fraction of a second, the same each time."""

import asyncio
import math
import random
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, TypeVar

from potstill.llm.limiter import Cost, Limiter
from potstill.llm.providers.base import Limit

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only, and at once, when nothing is left to do."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        select = self._selector.select

        def advance(timeout: float | None) -> Any:
            assert timeout is not None, "everybody waits for ever"
            self._now += timeout
            return select(0) if timeout == 0 and self._now == 0 else []

        self._selector.select = advance

    def time(self) -> float:
        return self._now


def run_virtually(make: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(make(loop))
    finally:
        loop.close()


class Reply(NamedTuple):
    usage: tuple[int, int] | None
    limits: Mapping[str, Limit]
    is_refused: bool = False
    retry_after_seconds: float | None = None


class Server:
    """Token buckets that hold so many seconds, full at first, and charge at arrival.

    Args:
        per_minute: by the name of the limit.
        charge: "used" for the tokens of prompt and completion, "most" for prompt and max_tokens.
        latency: draws how long a request takes; a tenth of it is the way there, which varies by up to 5 ms more.
        says: "openai" (with resets), "anthropic" (no resets) or None for no headers.
        retry_after: seconds that a refusal asks for, or None for none; "refill" for when there is enough again.
        refuse_first: the share of requests that are refused by chance, whatever the pace.
    """

    def __init__(
        self,
        per_minute: Mapping[str, float],
        holds_seconds: float,
        latency: Callable[[random.Random], float],
        *,
        charge: str = "used",
        tells: bool = True,
        tells_reset: bool = True,
        retry_after: float | None = 1.0,
        by_chance: float = 0.0,
        sizes: Callable[[random.Random], tuple[int, int]] = lambda _: (100, 100),
        max_tokens: int = 500,
        seed: int = 1,
    ) -> None:
        self.rate = {name: limit / 60 for name, limit in per_minute.items()}
        self.capacity = {name: rate * holds_seconds for name, rate in self.rate.items()}
        self.level = dict(self.capacity)
        self.random = random.Random(seed)
        self.latency, self.charge, self.tells, self.tells_reset = latency, charge, tells, tells_reset
        self.retry_after, self.by_chance, self.sizes, self.max_tokens = retry_after, by_chance, sizes, max_tokens
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
        await asyncio.sleep(max(0.0, latency - there))
        return reply

    def arrive(self, size: tuple[int, int], now: float) -> Reply:
        for name, rate in self.rate.items():
            self.level[name] = min(self.capacity[name], self.level[name] + rate * (now - self.changed_at))
        self.changed_at = now
        self.arrivals.append(now)
        tokens = size[0] + (size[1] if self.charge == "used" else self.max_tokens)
        output = size[1] if self.charge == "used" else self.max_tokens
        costs = {"requests": 1, "tokens": tokens, "input_tokens": size[0], "output_tokens": output}
        is_full = any(self.level[name] < costs[name] for name in self.rate)
        if is_full or self.random.random() < self.by_chance:
            self.refused += 1
            self.refusals.append(now)
            return Reply(None, self._limits(), is_refused=True, retry_after_seconds=self.retry_after)
        for name in self.rate:
            self.level[name] -= costs[name]
            self.charged[name] += costs[name]
        self.served += 1
        return Reply(size, self._limits())

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
        sizes = random.Random(7)
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
                await asyncio.sleep(reply.retry_after_seconds or 0.5)

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
