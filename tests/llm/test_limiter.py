import asyncio
from heapq import heappop, heappush

import pytest

from potstill.llm.limiter import Limiter


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def starts(limiter: Limiter, clock: Clock, count: int, tokens: int = 10) -> list[float]:
    found = []
    for _ in range(count):
        await limiter.wait(tokens)
        found.append(clock.now - 100)
    return found


async def test_without_a_limit_nothing_waits(clock: Clock) -> None:
    assert await starts(Limiter(clock=clock, sleep=clock.sleep), clock, 50) == [0.0] * 50


async def test_requests_are_spread_over_the_minute(clock: Clock) -> None:
    limiter = Limiter(rpm=30, clock=clock, sleep=clock.sleep)
    assert await starts(limiter, clock, 4) == pytest.approx([0, 2, 4, 6])


async def test_large_requests_wait_for_tokens_even_where_requests_are_left(clock: Clock) -> None:
    limiter = Limiter(rpm=600, tpm=6000, clock=clock, sleep=clock.sleep)
    assert await starts(limiter, clock, 3, tokens=500) == pytest.approx([0, 5, 10])


async def test_no_minute_holds_more_than_the_limit(clock: Clock) -> None:
    found = await starts(Limiter(rpm=20, clock=clock, sleep=clock.sleep), clock, 100)
    assert max(sum(begin <= start < begin + 60 for start in found) for begin in found) <= 21


async def test_unused_time_is_not_saved_up_for_a_burst(clock: Clock) -> None:
    limiter = Limiter(rpm=60, clock=clock, sleep=clock.sleep)
    await limiter.wait(1)
    clock.now += 600
    assert await starts(limiter, clock, 3) == pytest.approx([600, 601, 602])


async def test_a_pause_holds_everybody_back_and_a_shorter_one_does_not_end_it(clock: Clock) -> None:
    limiter = Limiter(clock=clock, sleep=clock.sleep)
    limiter.pause(7)
    limiter.pause(1)
    assert await starts(limiter, clock, 2) == pytest.approx([7, 7])


async def test_a_pause_that_begins_while_a_request_waits_holds_it_too(clock: Clock) -> None:
    async def sleep(seconds: float) -> None:
        clock.now += seconds
        if clock.now < 103:
            limiter.pause(5)

    limiter = Limiter(rpm=30, clock=clock, sleep=sleep)
    assert await starts(limiter, clock, 2) == pytest.approx([0, 7])


class Timeline:
    """Time that passes, for any number of sleepers at once, as soon as nobody has anything left to do."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        event = asyncio.Event()
        heappush(self._sleepers, (self.now + seconds, id(event), event))
        await event.wait()

    async def run(self) -> None:
        while True:
            for _ in range(5):
                await asyncio.sleep(0)
            if not self._sleepers:
                return
            self.now, _, event = heappop(self._sleepers)
            event.set()


async def test_those_who_waited_out_a_pause_leave_at_the_pace_and_not_all_at_its_end() -> None:
    time = Timeline()
    limiter = Limiter(rpm=60, clock=time, sleep=time.sleep)
    left: list[float] = []

    async def leave() -> None:
        await limiter.wait(1)
        left.append(time.now)
        if len(left) == 2:
            limiter.pause(30)

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(leave())
        group.create_task(time.run())
    assert left == pytest.approx([0, 1, 31, 32, 33, 34, 35, 36])
