import pytest

from potstill.llm.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock)


def attempts(breaker: Breaker, clock: Clock, seconds: float, per_second: float, *, failed_of_ten: int) -> None:
    """So many attempts, spread evenly; the first of every ten are those that fail."""
    for number in range(round(seconds * per_second)):
        breaker.record(ok=number % 10 >= failed_of_ten)
        clock.now += 1 / per_second


@pytest.mark.parametrize("per_second", [1, 10, 500])
def test_a_dead_minute_opens_it(breaker: Breaker, clock: Clock, per_second: float) -> None:
    attempts(breaker, clock, 60, per_second, failed_of_ten=0)
    assert not breaker.is_open
    attempts(breaker, clock, 60, per_second, failed_of_ten=10)
    assert breaker.is_open
    assert (breaker.reason() or "").startswith(
        ("45 of the last 50 attempts failed, for ", "50 of the last 50 attempts")
    )


@pytest.mark.parametrize("per_second", [1, 10, 500])
def test_an_outage_of_15_seconds_does_not_open_it(breaker: Breaker, clock: Clock, per_second: float) -> None:
    for _ in range(10):
        attempts(breaker, clock, 60, per_second, failed_of_ten=0)
        attempts(breaker, clock, 15, per_second, failed_of_ten=10)
    assert not breaker.is_open
    assert breaker.reason() is None


def test_a_run_that_begins_with_a_dead_provider_opens_it(breaker: Breaker, clock: Clock) -> None:
    attempts(breaker, clock, 29, 10, failed_of_ten=10)
    assert not breaker.is_open
    attempts(breaker, clock, 2, 10, failed_of_ten=10)
    assert breaker.reason() == "50 of the last 50 attempts failed, for 30 s"


def test_nine_failures_in_ten_open_it_and_eight_do_not(breaker: Breaker, clock: Clock) -> None:
    attempts(breaker, clock, 600, 10, failed_of_ten=8)
    assert not breaker.is_open
    attempts(breaker, clock, 60, 10, failed_of_ten=9)
    assert breaker.is_open


def test_a_lone_bad_prompt_that_is_asked_again_does_not_open_it_while_others_succeed(
    breaker: Breaker, clock: Clock
) -> None:
    for _ in range(200):
        for _ in range(5):
            breaker.record(ok=False)
        breaker.record(ok=True)
        clock.now += 10
    assert not breaker.is_open


def test_a_few_failures_that_last_long_are_too_few(breaker: Breaker, clock: Clock) -> None:
    attempts(breaker, clock, 2900, 0.01, failed_of_ten=10)
    assert not breaker.is_open
    attempts(breaker, clock, 200, 0.01, failed_of_ten=10)
    assert breaker.is_open


def test_it_stays_open(breaker: Breaker, clock: Clock) -> None:
    attempts(breaker, clock, 60, 10, failed_of_ten=10)
    reason = breaker.reason()
    attempts(breaker, clock, 600, 10, failed_of_ten=0)
    assert breaker.is_open
    assert breaker.reason() == reason
