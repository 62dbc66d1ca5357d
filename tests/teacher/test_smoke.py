"""Which prompts a smoke asks, and what is counted of the rest before anything is asked."""

from decimal import Decimal
from pathlib import Path

import pytest

from potstill.ledger import Ledger
from potstill.llm.messages import IMAGE_TOKENS, TOOL_TOKENS
from potstill.llm.providers import PROVIDERS
from potstill.teacher.estimate import Missing, bound_usd
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import InputRow, ListedRows
from potstill.teacher.smoke import count_missing, count_missing_of, pick_rows
from tests.fake_teacher import make_teacher, numbered_rows

URL = "http://127.0.0.1:9/v1"
PICTURE = [
    {"type": "text", "text": "What is it?"},
    {"type": "image_url", "image_url": {"url": "https://img.example/1"}},
]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


def plan_of(rows: list[InputRow], max_tokens: int = 100) -> TeachPlan:
    return make_plan(ListedRows(rows), make_teacher(URL, max_tokens=max_tokens), None)


def test_a_larger_smoke_holds_every_smaller_one() -> None:
    largest = pick_rows(1000, 200)
    assert all(pick_rows(1000, number) == largest[:number] for number in range(1, 200))


@pytest.mark.parametrize("total", [1, 2, 15, 16, 17, 40, 333])
def test_no_row_is_picked_twice_and_never_more_than_there_are(total: int) -> None:
    for wanted in (1, 16, 64, total, total + 1):
        assert len(set(pick_rows(total, wanted))) == min(total, wanted)
        assert set(pick_rows(total, wanted)) <= set(range(total))


@pytest.mark.parametrize("wanted", [4, 16, 64])
def test_each_of_as_many_equal_stretches_has_one_row_that_is_not_at_its_edge(wanted: int) -> None:
    stretch = 1000
    rows = sorted(pick_rows(wanted * stretch, wanted))
    assert [row // stretch for row in rows] == list(range(wanted))
    assert all(stretch / 4 < row % stretch < stretch * 3 / 4 for row in rows)


def test_what_is_missing_is_bounded_by_every_byte_that_is_sent_and_every_token_that_may_come(ledger: Ledger) -> None:
    found = plan_of(numbered_rows(2))
    sizes = [len(str(PROVIDERS["openai_compatible"].body(answer.request)).encode()) for answer in found.answers()]
    bound = bound_usd(count_missing(found, ledger), found.rates, 100)
    assert bound == pytest.approx((sum(sizes) * Decimal("2.5") + 2 * 100 * 10) / 1_000_000, rel=Decimal("0.2"))
    assert bound_usd(count_missing(found, ledger), found.rates, 200) - bound == Decimal("0.002")


def test_tools_and_images_cost_more_than_their_bytes_and_the_bound_says_so(ledger: Ledger) -> None:
    one, two, three = numbered_rows(3)
    with_tool = two._replace(prompt=two.prompt.model_copy(update={"tools": [TOOL]}))
    with_image = three._replace(
        prompt=three.prompt.model_copy(update={"messages": [{"role": "user", "content": PICTURE}]})
    )
    found = plan_of([one, with_tool, with_image])
    missing = count_missing(found, ledger)
    assert missing.hidden_tokens == TOOL_TOKENS + IMAGE_TOKENS
    without = bound_usd(missing._replace(hidden_tokens=0), found.rates, 100)
    hidden_usd = missing.hidden_tokens * found.rates.input / 1_000_000
    assert bound_usd(missing, found.rates, 100) == without + hidden_usd
    assert missing.minus(count_missing_of(found, ledger, [2])).hidden_tokens == TOOL_TOKENS
    assert Missing(1, 2, 3).plus(Missing(4, 5, 6)) == Missing(5, 7, 9)
