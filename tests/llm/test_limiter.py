import asyncio
from heapq import heappop, heappush

import pytest

from potstill.llm.limiter import Cost, Limiter, Ticket
from potstill.llm.providers.base import Limit
from potstill.records import Usage


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
        await limiter.acquire(Cost(tokens, 0))
        found.append(clock.now - 100)
    return found


TEN = Usage(input=10, output=10)


def end(
    limiter: Limiter,
    ticket: Ticket,
    *,
    usage: Usage | None = TEN,
    limits: dict[str, Limit] | None = None,
    is_rate_limited: bool = False,
    retry_after_seconds: float | None = None,
) -> None:
    limiter.settle(
        ticket,
        limits=limits or {},
        usage=usage,
        is_rate_limited=is_rate_limited,
        retry_after_seconds=retry_after_seconds,
    )


async def opened(clock: Clock) -> Limiter:
    """A limiter that has seen so many successes that nothing is held back."""
    limiter = Limiter(clock=clock, sleep=clock.sleep)
    for _ in range(200):
        ticket = await limiter.acquire(Cost(10, 10))
        clock.now += 0.01
        end(limiter, ticket)
    clock.now = 100.0
    return limiter


async def test_without_a_limit_nothing_waits_once_the_first_replies_have_come(clock: Clock) -> None:
    assert await starts(await opened(clock), clock, 500) == [0.0] * 500


async def test_before_the_first_reply_few_requests_leave(clock: Clock) -> None:
    found = await starts(Limiter(clock=clock, sleep=clock.sleep), clock, 17)
    assert found[-1] == pytest.approx(2, abs=0.02)


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
    await limiter.acquire(Cost(1, 0))
    clock.now += 600
    assert await starts(limiter, clock, 3) == pytest.approx([600, 601, 602])


async def test_a_pause_holds_everybody_back_and_a_shorter_one_does_not_end_it(clock: Clock) -> None:
    limiter = await opened(clock)
    limiter.pause(7)
    limiter.pause(1)
    assert await starts(limiter, clock, 2) == pytest.approx([7, 7])


async def test_a_pause_that_begins_while_a_request_waits_holds_it_too(clock: Clock) -> None:
    async def sleep(seconds: float) -> None:
        if clock.now == 100:
            limiter.pause(7)
        clock.now += seconds

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
        await limiter.acquire(Cost(1, 0))
        left.append(time.now)
        if len(left) == 2:
            limiter.pause(30)

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(leave())
        group.create_task(time.run())
    assert left == pytest.approx([0, 1, 31, 32, 33, 34, 35, 36])


async def test_those_who_come_first_leave_first() -> None:
    time = Timeline()
    limiter = Limiter(rpm=60, clock=time, sleep=time.sleep)
    left: list[int] = []

    async def leave(name: int) -> None:
        await limiter.acquire(Cost(100 - name, 0))
        left.append(name)

    async with asyncio.TaskGroup() as group:
        for name in range(20):
            group.create_task(leave(name))
        group.create_task(time.run())
    assert left == list(range(20))


async def test_one_who_waits_and_gives_up_holds_nobody_back(clock: Clock) -> None:
    limiter = Limiter(rpm=600)
    await limiter.acquire(Cost(1, 0))
    impatient = asyncio.create_task(limiter.acquire(Cost(1, 0)))
    patient = asyncio.create_task(limiter.acquire(Cost(1, 0)))
    await asyncio.sleep(0.01)
    impatient.cancel()
    ticket = await asyncio.wait_for(patient, 5)
    assert ticket.number == 1


async def test_an_error_of_the_sleep_reaches_everybody_who_waits() -> None:
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("the run stops")

    limiter = Limiter(rpm=60, sleep=sleep)
    await limiter.acquire(Cost(1, 0))
    ends = await asyncio.gather(*(limiter.acquire(Cost(1, 0)) for _ in range(3)), return_exceptions=True)
    assert [str(error) for error in ends] == ["the run stops"] * 3


async def test_a_refusal_pauses_everybody_for_as_long_as_it_asks(clock: Clock) -> None:
    limiter = await opened(clock)
    ticket = await limiter.acquire(Cost(10, 10))
    end(limiter, ticket, usage=None, is_rate_limited=True, retry_after_seconds=7)
    assert (await starts(limiter, clock, 1)) == pytest.approx([7])


async def test_a_refusal_that_names_no_time_pauses_everybody_for_a_second(clock: Clock) -> None:
    limiter = await opened(clock)
    ticket = await limiter.acquire(Cost(10, 10))
    end(limiter, ticket, usage=None, is_rate_limited=True)
    assert (await starts(limiter, clock, 1)) == pytest.approx([1])


async def test_a_refusal_of_an_empty_bucket_whose_refill_is_known_pauses_no_longer_than_that(clock: Clock) -> None:
    limiter = Limiter(clock=clock, sleep=clock.sleep)
    ticket = await limiter.acquire(Cost(10, 10))
    end(limiter, ticket, limits={"requests": Limit(600, 10, 0.0)})
    ticket = await limiter.acquire(Cost(10, 10))
    end(limiter, ticket, usage=None, limits={"requests": Limit(600, 0, 1.0)}, is_rate_limited=True)
    limiter.pause(0)
    began = clock.now
    await limiter.acquire(Cost(10, 10))
    assert clock.now - began < 0.5


async def test_what_is_given_back_can_be_used_by_the_next(clock: Clock) -> None:
    limiter = Limiter(rpm=6, clock=clock, sleep=clock.sleep)
    limiter.release(await limiter.acquire(Cost(10, 10)))
    assert await starts(limiter, clock, 2) == pytest.approx([0, 10])


async def test_the_second_end_of_a_request_changes_nothing(clock: Clock) -> None:
    limiter = Limiter(rpm=6, clock=clock, sleep=clock.sleep)
    ticket = await limiter.acquire(Cost(10, 10))
    end(limiter, ticket)
    limiter.release(ticket)
    end(limiter, ticket, usage=None, is_rate_limited=True, retry_after_seconds=100)
    assert await starts(limiter, clock, 1) == pytest.approx([10])
