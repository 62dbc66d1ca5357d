"""A server that tells no limits: its rate is found from refusals, and few of them."""

import pytest

from tests.llm.test_pace_server import LATENCIES, Server, constant, drilled, drive, lognormal, seeds

UNLIMITED = {"requests": 6e9}


@pytest.mark.parametrize("retry_after", [1.0, *drilled(0.05)])
@pytest.mark.parametrize("latency", ["200 ms", "lognormal"])
@pytest.mark.parametrize("holds_seconds", [5, 60])
def test_85_percent_of_the_rate_are_used_and_one_request_in_50_is_refused(
    holds_seconds: int, latency: str, retry_after: float
) -> None:
    server = Server({"requests": 3000}, holds_seconds, LATENCIES[latency], tells=False, retry_after=retry_after)
    drive(server, 6000, 64)
    assert server.used("requests") >= 0.85
    assert server.refused_share <= 0.02


@pytest.mark.parametrize(("latency", "rpm", "most"), [("20 ms", 3000, 0.02), ("2 s", 1200, 0.04)])
def test_the_rate_is_found_at_other_latencies_too(latency: str, rpm: float, most: float) -> None:
    server = Server({"requests": rpm}, 5, LATENCIES[latency], tells=False)
    drive(server, 6000, 64)
    assert server.used("requests") >= 0.85
    assert server.refused_share <= most


def test_with_512_in_flight_a_bucket_of_seconds_refuses_no_more() -> None:
    server = Server({"requests": 3000}, 5, LATENCIES["200 ms"], tells=False)
    drive(server, 6000, 512)
    assert server.used("requests") >= 0.85
    assert server.refused_share <= 0.02


def test_a_limit_of_tokens_is_found_as_well() -> None:
    server = Server({"tokens": 300_000}, 5, LATENCIES["200 ms"], tells=False)
    drive(server, 4000, 64)
    assert server.used("tokens") >= 0.85
    assert server.refused_share <= 0.04


@pytest.mark.parametrize("per_minute", [{"requests": 3000}, {"tokens": 300_000}], ids=["requests", "tokens"])
@pytest.mark.parametrize("latency", ["lognormal", *drilled("20 ms", "200 ms")])
@pytest.mark.parametrize("holds_seconds", [5, 60])
@pytest.mark.parametrize("seed", seeds(3, at_once=1))
def test_a_server_that_refuses_at_once_and_asks_for_just_the_time_until_there_is_room_is_not_stormed(
    per_minute: dict[str, float], latency: str, holds_seconds: int, seed: int
) -> None:
    server = Server(
        per_minute,
        holds_seconds,
        LATENCIES[latency],
        tells=False,
        retry_after="exact",
        refuses_at_once=True,
        sizes=lambda draw: (draw.randint(40, 50), draw.randint(45, 70)),
        max_tokens=128,
        seed=seed,
    )
    drive(server, 3500 if holds_seconds == 5 else 6250, 64)
    assert server.used(next(iter(per_minute))) >= 0.85
    assert server.refused_share <= 0.02


def test_a_fast_server_that_refuses_nothing_is_not_slowed_down() -> None:
    """10,000 requests a second: 64 in flight at 6.4 ms each."""
    server = Server(UNLIMITED, 5, constant(0.0064), tells=False)
    assert drive(server, 10_000, 64) <= 10_000 / 64 * 0.0064 + 0.2


def test_a_slow_server_with_many_in_flight_is_not_slowed_down_for_longer_than_some_latencies() -> None:
    server = Server(UNLIMITED, 5, constant(0.2), tells=False)
    assert drive(server, 10_000, 512) <= 1.5 * 10_000 / 512 * 0.2


@pytest.mark.parametrize(("in_flight", "times"), [(64, 2), (512, 8)])
def test_refusals_by_chance_do_not_bring_the_pace_down(in_flight: int, times: float) -> None:
    server = Server(UNLIMITED, 5, lognormal(0.05), tells=False, by_chance=0.05, retry_after=0.05)
    assert drive(server, 10_000, in_flight) <= times * 10_000 / in_flight * 0.06
    assert 0.03 < server.refused_share < 0.07


def test_refusals_by_chance_that_ask_for_a_pause_stop_pausing_everybody() -> None:
    server = Server(UNLIMITED, 5, lognormal(0.05), tells=False, by_chance=0.05, retry_after=1.0)
    assert drive(server, 2000, 64) < 30, "a pause for each of about 100 refusals would take longer"


def test_after_half_a_minute_of_nothing_but_refusals_the_pace_comes_back_at_once() -> None:
    server = Server(UNLIMITED, 5, constant(0.2), tells=False, down=(2.0, 32.0))
    seconds = drive(server, 10_000, 64)
    assert seconds <= 32 + 10_000 / 64 * 0.2 + 5
    assert server.refused < 200


def test_a_limit_that_is_raised_is_found_within_minutes() -> None:
    server = Server({"requests": 3000}, 5, constant(0.2), tells=False)
    raised_at = 30.0

    def raise_limit(_: object) -> float:
        if server.changed_at >= raised_at:
            server.rate["requests"] = 200.0
        return 0.2

    server.latency = raise_limit
    seconds = drive(server, 20_000, 64)
    alone = (20_000 - 30 * 50) / 200
    assert seconds <= raised_at + 1.5 * alone
    assert server.refused_share <= 0.02
