"""The caps of a recipe hold in every minute, whatever happens to the requests."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.llm.limiter import Cost, Limiter, Ticket
from potstill.records import Usage
from tests.llm.test_pace_server import Server, drive, lognormal
from tests.virtual_time import VirtualLoop, run_virtually


def most_in_a_minute(left: list[tuple[float, float]]) -> float:
    """The largest sum of what left within any 60 s, as (when, how much)."""
    most = inside = 0.0
    first = 0
    for when, amount in left:
        inside += amount
        while left[first][0] <= when - 60 + 1e-4:
            inside -= left[first][1]
            first += 1
        most = max(most, inside)
    return most


def wild_run(seed: int, rpm: float | None, tpm: float | None) -> list[tuple[float, float]]:
    """Requests of every size that come in bursts, end in every way, and are sometimes given back; (when left, tokens)."""
    draw = random.Random(seed)
    left: list[tuple[float, float]] = []

    async def run(loop: VirtualLoop) -> None:
        limiter = Limiter(rpm, tpm, clock=loop.time)

        def settle(ticket: Ticket, end: str) -> None:
            limiter.settle(
                ticket,
                limits={},
                usage=Usage(input=ticket.cost.prompt_tokens, output=20) if end == "answered" else None,
                is_rate_limited=end == "refused",
                retry_after_seconds=draw.choice([None, 0.0, 3.0]) if end == "refused" else None,
            )

        async def ask() -> None:
            await asyncio.sleep(draw.choice([0.0, 0.0, 10.0, 100.0]) * draw.random())
            ticket = await limiter.acquire(Cost(draw.randint(1, 100), 20))
            end = draw.choice(["answered", "answered", "refused", "lost", "released"])
            if end == "released":
                limiter.release(ticket)
                return
            left.append((loop.time(), ticket.cost.prompt_tokens + 20))
            await asyncio.sleep(draw.expovariate(1))
            settle(ticket, end)
            if draw.random() < 0.01:
                limiter.pause(5)

        asking = [asyncio.create_task(ask()) for _ in range(draw.randint(50, 300))]
        for task in draw.sample(asking, 5):
            loop.call_later(draw.uniform(0, 60), task.cancel)
        await asyncio.gather(*asking, return_exceptions=True)

    run_virtually(run)
    return left


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), rpm=st.sampled_from([7, 60, 333, 6000]))
def test_no_minute_has_more_requests_than_the_cap(seed: int, rpm: int) -> None:
    assert most_in_a_minute([(when, 1.0) for when, _ in wild_run(seed, rpm, None)]) <= rpm


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), rpm=st.sampled_from([60, 6000]), tpm=st.sampled_from([1000, 20_000]))
def test_no_minute_has_more_tokens_than_the_cap_and_the_last_request_of_it(seed: int, rpm: int, tpm: int) -> None:
    left = wild_run(seed, rpm, tpm)
    assert most_in_a_minute(left) <= tpm + 120, "a request's tokens are spread over the time after it"
    assert most_in_a_minute([(when, 1.0) for when, _ in left]) <= rpm


def test_a_cap_of_requests_is_used_to_the_full() -> None:
    server = Server({"requests": 1e9}, 60, lognormal(0.2), tells=False)
    assert drive(server, 3000, 64, rpm=3000) == pytest.approx(60, abs=1.5)


def test_tokens_count_as_prompt_and_mean_completion_and_not_as_max_tokens() -> None:
    server = Server({"tokens": 1e9}, 60, lognormal(0.2), tells=False, sizes=lambda _: (100, 100), max_tokens=900)
    assert drive(server, 1500, 64, tpm=300_000) == pytest.approx(60, abs=1.5)


def test_estimates_of_prompts_that_are_half_of_the_truth_are_corrected() -> None:
    async def run(loop: VirtualLoop) -> float:
        limiter = Limiter(tpm=60_000, clock=loop.time)
        for _ in range(301):
            ticket = await limiter.acquire(Cost(50, 0))
            limiter.settle(ticket, limits={}, usage=Usage(input=100), is_rate_limited=False, retry_after_seconds=None)
        return loop.time()

    assert run_virtually(run) == pytest.approx(300 * 0.1, abs=0.1)
