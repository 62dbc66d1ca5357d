"""Cutting requests into batches, and the ids that tie them to one."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import UsageError
from potstill.llm.batches import open_batches
from potstill.llm.batches.base import Limits, TooLarge, custom_id, is_of, split
from potstill.llm.endpoint import open_endpoint
from potstill.llm.providers.openai import OpenAI

ROOMY = Limits(requests=1000, bytes=1000)


def cut(sizes: list[int], limits: Limits) -> list[list[int] | TooLarge[int]]:
    return list(split(sizes, lambda size: size, limits))


def test_a_batch_is_filled_to_the_last_request_and_the_last_byte() -> None:
    assert cut([1, 1, 1, 1, 1], Limits(requests=2, bytes=1000)) == [[1, 1], [1, 1], [1]]
    assert cut([1, 1, 1, 1], Limits(requests=2, bytes=1000)) == [[1, 1], [1, 1]]
    assert cut([400, 600, 1], ROOMY) == [[400, 600], [1]]
    assert cut([400, 601, 1], ROOMY) == [[400], [601, 1]]
    assert cut([1000, 1000], ROOMY) == [[1000], [1000]]
    assert cut([], ROOMY) == []


def test_a_request_that_fits_in_no_batch_is_told_and_the_others_go_on_together() -> None:
    first, second = cut([3, 1001, 4], ROOMY)
    assert isinstance(first, TooLarge)
    assert (first.item, first.failure.cause) == (1001, "request")
    assert first.failure.message == "the request takes 1001 bytes, and a batch holds 1000: shorten the prompt"
    assert second == [3, 4]


@given(st.lists(st.integers(1, 60)), st.integers(1, 5), st.integers(1, 50))
def test_nothing_is_lost_or_moved_and_no_batch_is_too_large(sizes: list[int], requests: int, most: int) -> None:
    parts = cut(sizes, Limits(requests, most))
    batches = [part for part in parts if not isinstance(part, TooLarge)]
    assert [size for batch in batches for size in batch] == [size for size in sizes if size <= most]
    assert [part.item for part in parts if isinstance(part, TooLarge)] == [size for size in sizes if size > most]
    assert all(0 < len(batch) <= requests and sum(batch) <= most for batch in batches)
    assert all(len(batch) == requests or sum(batch) + following[0] > most for batch, following in pairwise(batches))


def test_requests_are_taken_one_batch_at_a_time() -> None:
    taken: list[int] = []

    def stream() -> Iterator[int]:
        for number in range(1, 100):
            taken.append(number)
            yield number

    batches = split(stream(), lambda _: 1, Limits(requests=3, bytes=1000))
    assert next(batches) == [1, 2, 3]
    assert taken == [1, 2, 3, 4]


def test_a_custom_id_holds_its_token_and_only_its_own() -> None:
    assert custom_id("night_0007", "12-ab") == "night_0007-12-ab"
    assert is_of("night_0007", "night_0007-12")
    assert not is_of("night_000", "night_0007-12")
    assert not is_of("night_0007", None)


@pytest.mark.parametrize(
    ("token", "name"),
    [
        ("short", "1"),
        ("with-hyphen", "1"),
        ("x" * 32, "1"),
        ("night_0007", ""),
        ("night_0007", "ü"),
        ("night_0007", "x" * 33),
    ],
)
def test_a_custom_id_that_a_provider_would_refuse_is_never_made(token: str, name: str) -> None:
    with pytest.raises(UsageError, match="custom id"):
        custom_id(token, name)


async def test_a_provider_without_batches_is_named() -> None:
    endpoint = open_endpoint("openai", "http://127.0.0.1:9/v1")
    pigeon = OpenAI()
    pigeon.name = "carrier pigeon"
    with pytest.raises(UsageError, match="'carrier pigeon' has no batches: known are anthropic, openai"):
        async with open_batches(endpoint._replace(provider=pigeon)):
            pass
