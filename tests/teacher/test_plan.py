from pathlib import Path
from typing import Any

import pytest

from potstill.artifacts import ArtifactRef
from potstill.errors import UnknownPriceError
from potstill.recipe import Task
from potstill.records import Prompt, write_parquet
from potstill.teacher.plan import TeachPlan, batch_key, make_plan, split_batches
from potstill.teacher.rows import InputRow, ListedRows, StoredRows
from tests.fake_teacher import make_teacher, numbered_rows, row

URL = "http://127.0.0.1:9/v1"
FIRST_KEYS = ["68282100b655c463", "4eec78ae1136cdbc"]


def plan(rows: list[InputRow] | None = None, task: Task | None = None, **fields: Any) -> TeachPlan:
    return make_plan(ListedRows(numbered_rows(5) if rows is None else rows), make_teacher(URL, **fields), task)


def test_answers_stand_in_the_order_of_the_rows_and_equal_prompts_ask_for_the_same() -> None:
    rows = [row("b", "1"), row("a", "2"), row("b", "3"), row("c", "4")]
    found = list(plan(rows, samples=2).answers())
    texts = [(answer.row_id, answer.prompt.messages[0]["content"], answer.sample_index) for answer in found]
    assert texts == [(name, text, sample) for name, text in zip("1234", "babc", strict=True) for sample in (0, 1)]
    assert [answer.key for answer in found[:2]] == [answer.key for answer in found[4:6]]
    assert len({answer.key for answer in found}) == 6


def test_an_answer_keeps_the_key_that_it_had_in_the_first_version() -> None:
    """A key that changes is an answer paid for twice."""
    assert [answer.key[:16] for answer in plan(numbered_rows(2), seed=1).answers()] == FIRST_KEYS


def test_each_sample_has_a_seed_of_its_own() -> None:
    assert [answer.request.seed for answer in plan(numbered_rows(1), samples=3, seed=7).answers()] == [7, 8, 9]
    assert [answer.request.seed for answer in plan(numbered_rows(1), samples=2).answers()] == [None, None]


@pytest.mark.parametrize(
    "change", [{"concurrency": 2}, {"rpm": 5}, {"tpm": 500}, {"timeout_seconds": 3}, {"batch_size": 1}, {"attest": "x"}]
)
def test_pace_and_address_ask_for_the_same_answers_in_the_same_run(change: dict[str, Any]) -> None:
    assert plan(**change).key == plan().key
    assert plan(base_url="http://127.0.0.1:10/v1").run == plan().run
    assert plan(choose="majority", quality_retries=2).run == plan().run, "how answers are judged is no other bill"
    assert plan(samples=2).run != plan().run


@pytest.mark.parametrize(
    "change",
    [{"model": "other"}, {"max_tokens": 65}, {"temperature": 0.1}, {"seed": 0}, {"samples": 2}],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_an_answer_decides_the_key(change: dict[str, Any]) -> None:
    assert plan(**change).key != plan().key


def test_more_prompts_keep_the_answers_that_were_there_and_give_another_key() -> None:
    more = plan(numbered_rows(8))
    assert [answer.key for answer in list(more.answers())[:5]] == [answer.key for answer in plan().answers()]
    assert more.key != plan().key


def test_another_task_judges_anew_without_asking_anew() -> None:
    judged = plan(task=Task(kind="extraction"))
    assert judged.key != plan().key
    assert [answer.key for answer in judged.answers()] == [answer.key for answer in plan().answers()]


def test_batches_hold_everything_once_and_a_batch_is_done_in_one_ledger_only() -> None:
    found = plan(numbered_rows(7), batch_size=3)
    batches = split_batches(found)
    assert [number for batch in batches for number in batch] == list(range(7))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    keys = {str(batch_key(found, batch, "one")) for batch in batches}
    assert len(keys) == 3
    assert str(batch_key(found, batches[0], "two")) not in keys
    assert str(batch_key(plan(numbered_rows(7), batch_size=3, seed=1), batches[0], "one")) not in keys


def test_chunks_hold_everything_once_however_few_rows_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.teacher.plan.CHUNK_ROWS", 3)
    found = plan(numbered_rows(8), samples=2)
    chunks = list(found.chunks())
    assert [len(chunk) for chunk in chunks] == [6, 6, 4]
    assert [answer for chunk in chunks for answer in chunk] == list(found.answers())


def test_a_stored_row_without_an_id_of_its_own_goes_by_its_prompts(tmp_path: Path) -> None:
    named, nameless = row("a", "1").prompt, row("b", "2").prompt
    prompts = [named.model_copy(update={"row_id": "mine"}), nameless]
    write_parquet(tmp_path / "prompts.parquet", prompts, Prompt)
    rows = StoredRows(tmp_path, ArtifactRef(kind="PromptSet", uri=str(tmp_path), digest="d", num_rows=2))
    assert list(rows.read(0, 2)) == [InputRow("mine", prompts[0]), InputRow(nameless.prompt_id, nameless)]
    assert [found.row_id for found in rows.read(1, 2)] == [nameless.prompt_id]
    assert len(rows) == 2


def test_nothing_is_planned_at_a_price_that_nobody_knows() -> None:
    with pytest.raises(UnknownPriceError):
        plan(price=None)
