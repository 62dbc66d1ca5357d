from decimal import Decimal
from typing import Any

import pytest

from potstill.errors import UnknownPriceError
from potstill.llm.providers import PROVIDERS
from potstill.recipe import Task
from potstill.teacher.plan import TeachPlan, batch_key, make_plan, prompt_set_rows, split_batches, upper_bound_usd
from tests.fake_teacher import make_teacher, numbered_rows, row

URL = "http://127.0.0.1:9/v1"


def plan(rows: Any = None, task: Task | None = None, **fields: Any) -> TeachPlan:
    return make_plan(numbered_rows(5) if rows is None else rows, make_teacher(URL, **fields), task)


def test_answers_stand_in_the_order_in_which_their_prompts_first_came_each_once() -> None:
    rows = [row("b", "1"), row("a", "2"), row("b", "3"), row("c", "4")]
    found = plan(rows, samples=2)
    texts = [(answer.prompt.messages[0]["content"], answer.sample_index) for answer in found.answers]
    assert texts == [("b", 0), ("b", 1), ("a", 0), ("a", 1), ("c", 0), ("c", 1)]
    assert len({answer.key for answer in found.answers}) == 6
    assert [row_id for row_id, _ in found.rows] == ["1", "2", "3", "4"]


def test_each_sample_has_a_seed_of_its_own() -> None:
    assert [answer.request.seed for answer in plan(numbered_rows(1), samples=3, seed=7).answers] == [7, 8, 9]
    assert [answer.request.seed for answer in plan(numbered_rows(1), samples=2).answers] == [None, None]


@pytest.mark.parametrize(
    "change", [{"concurrency": 2}, {"rpm": 5}, {"tpm": 500}, {"timeout_seconds": 3}, {"batch_size": 1}, {"attest": "x"}]
)
def test_pace_and_address_ask_for_the_same_answers_in_the_same_run(change: dict[str, Any]) -> None:
    assert plan(**change).key == plan().key
    assert plan(base_url="http://127.0.0.1:10/v1").run == plan().run


@pytest.mark.parametrize(
    "change",
    [{"model": "other"}, {"max_tokens": 65}, {"temperature": 0.1}, {"seed": 0}, {"samples": 2}],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_an_answer_decides_the_key(change: dict[str, Any]) -> None:
    assert plan(**change).key != plan().key


def test_more_prompts_keep_the_answers_that_were_there_and_give_another_key() -> None:
    more = plan(numbered_rows(8))
    assert [answer.key for answer in more.answers[:5]] == [answer.key for answer in plan().answers]
    assert more.key != plan().key


def test_another_task_judges_anew_without_asking_anew() -> None:
    judged = plan(task=Task(kind="extraction"))
    assert judged.key != plan().key
    assert [answer.key for answer in judged.answers] == [answer.key for answer in plan().answers]


def test_batches_hold_everything_once_and_a_batch_is_done_in_one_ledger_only() -> None:
    found = plan(numbered_rows(7), samples=2, batch_size=4)
    batches = split_batches(found)
    assert [len(batch) for batch in batches] == [4, 4, 4, 2]
    assert [answer for batch in batches for answer in batch] == found.answers
    keys = {batch_key(batch, "one") for batch in batches}
    assert len(keys) == 4
    assert batch_key(batches[0], "two") not in keys


def test_a_row_without_an_id_of_its_own_goes_by_its_prompts() -> None:
    named, nameless = row("a", "1").prompt, row("b", "2").prompt
    rows = prompt_set_rows([named.model_copy(update={"row_id": "mine"}), nameless])
    assert [row_id for row_id, _ in rows] == ["mine", nameless.prompt_id]


def test_the_upper_bound_counts_every_byte_that_is_sent_and_every_token_that_may_come() -> None:
    found = plan(numbered_rows(2), max_tokens=100)
    sizes = [len(str(PROVIDERS["openai_compatible"].body(answer.request)).encode()) for answer in found.answers]
    lowest = (sum(sizes) * Decimal("0.8") * Decimal("2.5") + 2 * 100 * 10) / 1_000_000
    highest = (sum(sizes) * Decimal("1.2") * Decimal("2.5") + 2 * 100 * 10) / 1_000_000
    assert lowest < upper_bound_usd(found) < highest
    assert upper_bound_usd(plan(numbered_rows(2), max_tokens=200)) - upper_bound_usd(found) == Decimal("0.002")


def test_nothing_is_planned_at_a_price_that_nobody_knows() -> None:
    with pytest.raises(UnknownPriceError):
        plan(price=None)
