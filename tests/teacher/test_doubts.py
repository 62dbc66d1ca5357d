from collections.abc import Iterator

import pytest

from potstill.teacher.doubts import MANY, Doubts


@pytest.fixture
def doubts() -> Doubts:
    moments: Iterator[float] = iter(range(1, 1000))
    return Doubts(lambda: next(moments))


def test_an_answer_speaks_against_what_was_refused_before_it_was_asked_for(doubts: Doubts) -> None:
    for key in "abc":
        doubts.refused(key)  # at 1, 2 and 3
    doubts.answered(2.5)
    assert [doubts.is_at_fault(key) for key in "abc"] == [True, True, False], "c may have met an outage since"
    assert doubts.keys == ["c"]


def test_many_refusals_in_a_row_speak_against_the_endpoint_until_it_answers(doubts: Doubts) -> None:
    for number in range(MANY - 1):
        doubts.refused(str(number))
    doubts.refused("0")
    assert not doubts.are_many, "one prompt, twice"
    doubts.refused("another")
    assert doubts.are_many
    doubts.answered(1000)
    assert not doubts.are_many
