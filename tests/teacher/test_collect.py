import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from potstill.artifacts import ArtifactStore
from potstill.errors import TransientTeacherError
from potstill.ledger import Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.recipe import Task
from potstill.records import Completion, read_parquet
from potstill.teacher.collect import collect, read_summary
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import InputRow, ListedRows
from potstill.teacher.session import TeacherSession
from tests.fake_teacher import BAD_REQUEST, EMPTY, QUICK, RESET, FakeTeacher, make_teacher, row

KEYS = [
    "id",
    "prompt_id",
    "sample_index",
    "messages",
    "completion",
    "message",
    "finish_reason",
    "choice_score",
    "usage",
    "cost_usd",
    "teacher",
    "quarantine",
]
ROWS = [row("Is it #0002?", "b"), row("Is it #0001?", "a"), row("Is it #0002?", "c"), row("Is it #0003?", "d")]


class Bench:
    """A fake teacher, a ledger and a store."""

    def __init__(self, directory: Path, teacher: FakeTeacher) -> None:
        self.teacher = teacher
        self.ledger = Ledger(f"sqlite:///{directory / 'ledger.db'}")
        self.store = ArtifactStore(directory / "store")

    def plan(self, rows: list[InputRow] = ROWS, task: Task | None = None, **fields: Any) -> TeachPlan:
        return make_plan(ListedRows(rows), make_teacher(self.teacher.url, **fields), task)

    def ask(self, plan: TeachPlan) -> None:
        with TeacherSession(plan, self.ledger, NO_CAPS, QUICK) as session:
            session.answer()

    def collect(self, plan: TeachPlan) -> Path:
        return self.store.path(collect(plan, self.ledger, self.store))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with FakeTeacher() as teacher:
        yield Bench(tmp_path, teacher)


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "completions.jsonl").read_text().splitlines()]


def test_one_line_an_input_row_and_sample_in_the_order_of_the_input(bench: Bench) -> None:
    plan = bench.plan(samples=2)
    bench.ask(plan)
    directory = bench.collect(plan)
    found = lines(directory)
    assert [(line["id"], line["sample_index"]) for line in found] == [
        (row_id, sample) for row_id in "bacd" for sample in range(2)
    ]
    asked = [line["messages"][0]["content"].removeprefix("Is it ").strip("?") for line in found]
    assert [line["completion"] for line in found] == [f"answer to {mark}" for mark in asked]
    stored = list(read_parquet(directory / "completions.parquet", Completion))
    assert len(stored) == len({(line.prompt_id, line.sample_index) for line in stored}) == 6


def test_a_line_holds_exactly_what_was_promised(bench: Bench) -> None:
    plan = bench.plan()
    bench.ask(plan)
    for line in lines(bench.collect(plan)):
        assert sorted(line) == sorted(KEYS)
    assert line["message"] == {"role": "assistant", "content": "answer to #0003"}
    assert (line["teacher"], line["finish_reason"], line["quarantine"]) == ("fake-1", "stop", None)
    asked = next(asked for asked in bench.teacher.requests if asked.mark == "#0003")
    assert (line["usage"]["input"], line["usage"]["output"]) == asked.billed


def test_the_total_holds_every_attempt_and_the_unusable_ones_too(bench: Bench) -> None:
    bench.teacher.fail_next(EMPTY, RESET)
    plan = bench.plan()
    bench.ask(plan)
    summary = read_summary(bench.collect(plan))
    assert (summary.prompts, summary.answered, summary.quarantined, summary.attempts) == (3, 3, 0, 5)
    assert summary.cost_usd == bench.teacher.billed_usd
    assert summary.unknown == 1
    assert summary.total_cost_usd == summary.cost_usd * 5 / 4, "an attempt that nobody knows counts as a mean one"
    assert (summary.input_tokens, summary.output_tokens) == bench.teacher.billed
    assert summary.unknown_usd > 0


def test_a_refused_prompt_and_a_wrong_answer_are_quarantined_with_their_reason(bench: Bench) -> None:
    bench.teacher.behaviour = lambda asked: BAD_REQUEST if asked.mark == "#0001" else None
    plan = bench.plan(task=Task(kind="classification", labels=("answer to #0002", "other")))
    bench.ask(plan)
    directory = bench.collect(plan)
    assert {line["id"]: line["quarantine"] for line in lines(directory)} == {
        "b": None,
        "a": "error: HTTP 400: scripted 400",
        "c": None,
        "d": "not a label: answer to #0003",
    }
    summary = read_summary(directory)
    assert (summary.answered, summary.quarantined, summary.reasons) == (1, 2, {"error": 1, "not a label": 1})
    assert summary.examples == {"error": ("a: error: HTTP 400: scripted 400",), "not a label": ("d: answer to #0003",)}


def test_while_answers_are_missing_nothing_is_written(bench: Bench) -> None:
    plan = bench.plan()
    bench.ask(bench.plan(ROWS[:2]))
    with pytest.raises(TransientTeacherError, match=r"1 of 4 answers are missing.*never asked"):
        bench.collect(plan)
    assert bench.store.lookup(plan.key) is None


def test_another_task_judges_the_same_answers_without_asking_again(bench: Bench) -> None:
    plan = bench.plan()
    bench.ask(plan)
    other = bench.plan(task=Task(kind="extraction"))
    assert read_summary(bench.collect(plan)).answered == 3
    assert read_summary(bench.collect(other)).quarantined == 3
    assert len(bench.teacher.requests) == 3


def test_a_tool_prompt_keeps_its_tools(bench: Bench) -> None:
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    with_tools = ROWS[0]._replace(prompt=ROWS[0].prompt.model_copy(update={"tools": tools}))
    plan = bench.plan([with_tools])
    bench.ask(plan)
    assert lines(bench.collect(plan))[0]["tools"] == tools
    assert bench.teacher.requests[0].body["tools"] == tools


def test_costs_are_exact_to_the_last_pico_dollar(bench: Bench) -> None:
    plan = bench.plan()
    bench.ask(plan)
    stored = read_parquet(bench.collect(plan) / "completions.parquet", Completion)
    assert sum((line.cost_usd for line in stored), Decimal(0)) == bench.teacher.billed_usd
