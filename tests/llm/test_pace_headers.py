"""A server that tells its limits: all of them used, and next to nothing refused."""

import pytest

from tests.llm.test_pace_server import LATENCIES, Server, drilled, drive, seeds

RPM, TPM = {"requests": 3000.0}, {"tokens": 300_000.0}
SERVERS = [(RPM, "used"), (TPM, "used"), (TPM, "most")]
REQUESTS = {("requests", 5): 1500, ("requests", 60): 4000, ("tokens", 5): 1000, ("tokens", 60): 2500}


@pytest.mark.parametrize("in_flight", [64, 512])
@pytest.mark.parametrize("latency", ["lognormal", *drilled("20 ms", "200 ms")])
@pytest.mark.parametrize("holds_seconds", [5, 60])
@pytest.mark.parametrize(("per_minute", "charge"), SERVERS)
def test_97_percent_of_a_limit_are_used_and_one_request_in_1000_is_refused(
    per_minute: dict[str, float], charge: str, holds_seconds: int, latency: str, in_flight: int
) -> None:
    server = Server(per_minute, holds_seconds, LATENCIES[latency], charge=charge)
    limit = next(iter(per_minute))
    drive(server, REQUESTS[limit, holds_seconds], in_flight)
    assert server.used(limit) >= 0.97
    assert server.refused_share <= 0.001


@pytest.mark.parametrize("holds_seconds", [5, 60])
@pytest.mark.parametrize(("per_minute", "charge"), SERVERS)
def test_the_same_at_a_latency_of_2_seconds(per_minute: dict[str, float], charge: str, holds_seconds: int) -> None:
    """Of so many requests that the first one, which goes alone, leaves 97 % to be used."""
    server = Server(per_minute, holds_seconds, LATENCIES["2 s"], charge=charge)
    drive(server, 6000 if per_minute is RPM else 4000, 512)
    assert server.used(next(iter(per_minute))) >= 0.97
    assert server.refused_share <= 0.001


@pytest.mark.parametrize("holds_seconds", [5, 60])
def test_where_too_few_are_in_flight_for_the_limit_the_mirror_holds_nothing_back(holds_seconds: int) -> None:
    server = Server(RPM, holds_seconds, LATENCIES["2 s"])
    seconds = drive(server, 2001, 64)
    assert seconds == pytest.approx(2 + 2 * 32, abs=0.01)
    assert server.refused == 0


@pytest.mark.parametrize("seed", seeds(5, at_once=2))
def test_the_bars_hold_whatever_the_order_on_the_way(seed: int) -> None:
    server = Server(RPM | TPM, 5, LATENCIES["lognormal"], charge="used", seed=seed)
    drive(server, 1500, 256)
    assert server.used("tokens") >= 0.97
    assert server.refused_share <= 0.001


@pytest.mark.parametrize("per_minute", [{"input_tokens": 150_000.0}, {"output_tokens": 150_000.0}, RPM])
def test_the_limits_of_anthropic_are_mirrored_each_and_without_resets_too(per_minute: dict[str, float]) -> None:
    others = {"requests": 30_000.0, "input_tokens": 3_000_000.0, "output_tokens": 3_000_000.0}
    server = Server(others | per_minute, 60, LATENCIES["lognormal"], tells_reset=False)
    drive(server, 4000 if per_minute is RPM else 2500, 64)
    assert server.used(next(iter(per_minute))) >= 0.97
    assert server.refused_share <= 0.001


LONG_PROMPTS = {"input_tokens": 30_000.0}, 10_000
MANY_PROMPTS = {"input_tokens": 150_000.0}, 2000


@pytest.mark.parametrize("cached", [0.5, 0.95])
@pytest.mark.parametrize(("per_minute", "prompt"), [LONG_PROMPTS, MANY_PROMPTS])
def test_what_lies_in_anthropics_cache_does_not_hold_back_the_rest(
    per_minute: dict[str, float], prompt: int, cached: float
) -> None:
    server = Server(
        per_minute,
        60,
        LATENCIES["lognormal"],
        tells_reset=False,
        cached=cached,
        sizes=lambda draw: (draw.randint(prompt - 20, prompt + 20), 100),
    )
    drive(server, round(6 * per_minute["input_tokens"] / (prompt * (1 - cached))), 64)
    assert server.used("input_tokens") >= 0.97
    assert server.refused == 0


def test_a_model_whose_cached_input_counts_refuses_one_wave_and_no_more() -> None:
    per_minute, prompt = MANY_PROMPTS
    sizes = {"sizes": lambda draw: (draw.randint(prompt - 20, prompt + 20), 100)}
    server = Server(per_minute, 60, LATENCIES["lognormal"], tells_reset=False, cached=0.9, charges_cached=True, **sizes)
    drive(server, 900, 64)
    assert server.used("input_tokens") >= 0.97
    assert server.refused <= 64
    assert max(server.refusals, default=0.0) - min(server.refusals, default=0.0) <= 2, "one wave"


def test_a_small_limit_is_used_as_well() -> None:
    server = Server({"requests": 30.0}, 60, LATENCIES["200 ms"])
    drive(server, 200, 16)
    assert server.used("requests") >= 0.97
    assert server.refused <= 1


def test_a_cap_of_the_recipe_below_the_servers_limit_holds_beside_it() -> None:
    server = Server(RPM, 60, LATENCIES["200 ms"])
    drive(server, 600, 64, rpm=600)
    assert 599 / 10 <= server.arrivals[-1] - server.arrivals[0] <= 601 / 10
    assert server.refused == 0


def test_a_servers_limit_below_the_cap_of_the_recipe_holds_beside_it() -> None:
    server = Server(RPM, 5, LATENCIES["200 ms"])
    drive(server, 2000, 64, rpm=30_000)
    assert server.used("requests") >= 0.97
    assert server.refused_share <= 0.001
