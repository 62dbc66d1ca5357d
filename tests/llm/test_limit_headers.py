"""What the servers' headers say of limits and waits; whatever cannot be read says nothing."""

import pytest

from potstill.llm.providers import PROVIDERS
from potstill.llm.providers.base import Limit
from potstill.llm.providers.headers import read_duration, read_retry_after

OPENAI, ANTHROPIC = PROVIDERS["openai"], PROVIDERS["anthropic"]
DATE = {"date": "Tue, 24 Nov 2026 15:00:00 GMT"}


def test_openai_tells_of_requests_and_tokens() -> None:
    headers = {
        "x-ratelimit-limit-requests": "10000",
        "x-ratelimit-remaining-requests": "9999",
        "x-ratelimit-reset-requests": "6ms",
        "x-ratelimit-limit-tokens": "2000000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    expected = {"requests": Limit(10_000, 9_999, 0.006), "tokens": Limit(2_000_000, 0, 360)}
    assert OPENAI.read_limits(headers) == expected
    assert PROVIDERS["openai_compatible"].read_limits(headers) == expected
    assert ANTHROPIC.read_limits(headers) == {}


def test_anthropic_tells_of_four_buckets_by_the_clock_of_its_own() -> None:
    headers = {
        **DATE,
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2026-11-24T15:00:01Z",
        "anthropic-ratelimit-tokens-limit": "60000",
        "anthropic-ratelimit-tokens-remaining": "58000",
        "anthropic-ratelimit-tokens-reset": "2026-11-24T14:59:00Z",
        "anthropic-ratelimit-input-tokens-limit": "50000",
        "anthropic-ratelimit-input-tokens-remaining": "49000",
        "anthropic-ratelimit-input-tokens-reset": "2026-11-24T16:00:30.5+01:00",
        "anthropic-ratelimit-output-tokens-limit": "10000",
        "anthropic-ratelimit-output-tokens-remaining": "9000",
    }
    assert ANTHROPIC.read_limits(headers) == {
        "requests": Limit(50, 49, 1),
        "tokens": Limit(60_000, 58_000, 0),
        "input_tokens": Limit(50_000, 49_000, 30.5),
        "output_tokens": Limit(10_000, 9_000, None),
    }
    assert OPENAI.read_limits(headers) == {}


@pytest.mark.parametrize("limit", ["10", "many", "-1", "inf", "nan", "0", "", None])
@pytest.mark.parametrize("remaining", ["9", "few", "-1", "", None])
def test_a_bucket_whose_figures_cannot_be_read_is_left_out(limit: str | None, remaining: str | None) -> None:
    pairs = {"limit": limit, "remaining": remaining}
    openai = {f"x-ratelimit-{name}-tokens": value for name, value in pairs.items() if value is not None}
    anthropic = {f"anthropic-ratelimit-tokens-{name}": value for name, value in pairs.items() if value is not None}
    expected = {"tokens": Limit(10, 9, None)} if (limit, remaining) == ("10", "9") else {}
    assert OPENAI.read_limits(openai) == expected
    assert ANTHROPIC.read_limits(anthropic) == expected


@pytest.mark.parametrize("reset", ["soon", "", "2026-13-45", "1e400", "-5s"])
def test_a_reset_that_cannot_be_read_leaves_the_rest(reset: str) -> None:
    openai = {
        "x-ratelimit-limit-tokens": "10",
        "x-ratelimit-remaining-tokens": "9",
        "x-ratelimit-reset-tokens": reset,
    }
    anthropic = {
        "anthropic-ratelimit-tokens-limit": "10",
        "anthropic-ratelimit-tokens-remaining": "9",
        "anthropic-ratelimit-tokens-reset": reset,
    }
    assert OPENAI.read_limits(openai) == ANTHROPIC.read_limits(anthropic) == {"tokens": Limit(10, 9, None)}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360),
        ("120ms", 0.12),
        ("1.5s", 1.5),
        ("1h2m3s", 3723),
        ("1d", 86_400),
        ("250µs", 0.00025),
        ("17", 17),
        ("0s", 0),
        ("6m0", None),
        ("s", None),
        ("6 m", None),
        ("", None),
        (None, None),
    ],
)
def test_a_duration_is_read_in_all_its_units(text: str | None, seconds: float | None) -> None:
    assert read_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "3"}, 3),
        ({**DATE, "retry-after": "Tue, 24 Nov 2026 15:00:20 GMT"}, 20),
        ({**DATE, "retry-after": "Tue, 24 Nov 2026 14:00:00 GMT"}, 0),
        ({"retry-after": "Tue, 24 Nov 2020 15:00:20 GMT"}, 0),
        ({"date": "never", "retry-after": "Tue, 24 Nov 2020 15:00:20 GMT"}, 0),
        ({"retry-after": "Tue, 99 Nov 2026 15:00:20 GMT"}, None),
        ({"retry-after": "-3"}, None),
        ({}, None),
    ],
)
def test_a_wait_is_given_in_milliseconds_in_seconds_or_as_a_date(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert read_retry_after(headers) == pytest.approx(seconds)
