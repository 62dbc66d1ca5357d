"""Bad answers asked for again, and the one of several that is trained on."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potstill.artifacts import ArtifactStore
from potstill.ledger import Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.recipe import Task
from potstill.records import Completion, best_samples, read_parquet
from potstill.teacher.collect import collect
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import ListedRows
from potstill.teacher.session import TeacherSession
from potstill.teacher.unfinished import open_batches
from tests.fake_teacher import BAD_REQUEST, QUICK, FakeTeacher, cut_short, make_teacher, numbered_rows

TASK = Task(kind="classification", labels=("yes", "no"))


class Moody:
    """Answers each prompt with what stands next in its list, and with the last for ever after."""

    def __init__(self, **answers: list[str]) -> None:
        self._answers = answers
        self._asked: Counter[str] = Counter()

    def __call__(self, mark: str) -> str:
        answers = self._answers.get(mark.removeprefix("#"), ["yes"])
        self._asked[mark] += 1
        return answers[min(self._asked[mark], len(answers)) - 1]


@pytest.fixture
def teacher() -> Iterator[FakeTeacher]:
    with FakeTeacher(answer=Moody(**{"0001": ["maybe", "maybe", "no"], "0002": ["perhaps"]})) as teacher:
        yield teacher


def planned(teacher: FakeTeacher, count: int = 4, **fields: Any) -> TeachPlan:
    return make_plan(ListedRows(numbered_rows(count)), make_teacher(teacher.url, **fields), TASK)


def ask(plan: TeachPlan, ledger: Ledger) -> Any:
    with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
        return session.answer()


def completions(plan: TeachPlan, ledger: Ledger, directory: Path) -> dict[str, list[Completion]]:
    """By the prompt's last digit."""
    store = ArtifactStore(directory / "store")
    path = store.path(collect(plan, ledger, store)) / "completions.parquet"
    found: dict[str, list[Completion]] = {}
    for row in read_parquet(path, Completion):
        found.setdefault(row.prompt_id.strip("?")[-1], []).append(row)
    return found


def test_a_bad_answer_is_asked_for_again_until_it_is_good_or_there_were_enough(
    teacher: FakeTeacher, ledger: Ledger, tmp_path: Path
) -> None:
    plan = planned(teacher, quality_retries=3)
    ask(plan, ledger)
    assert Counter(teacher.marks()) == {"#0000": 1, "#0001": 3, "#0002": 4, "#0003": 1}
    found = completions(plan, ledger, tmp_path)
    assert [(row.sample_index, row.completion, row.quarantine) for row in found["1"]] == [
        (0, "maybe", "not a label: maybe"),
        (1, "maybe", "not a label: maybe"),
        (2, "no", None),
    ]
    assert all(row.quarantine for row in found["2"])
    assert ask(plan, ledger).attempts == 0


def test_without_retries_a_bad_answer_stays(teacher: FakeTeacher, ledger: Ledger) -> None:
    ask(planned(teacher), ledger)
    assert len(teacher.requests) == 4


def test_a_run_with_more_retries_asks_only_for_those(teacher: FakeTeacher, ledger: Ledger) -> None:
    ask(planned(teacher, quality_retries=1), ledger)
    assert open_batches(planned(teacher, quality_retries=1, batch_size=1), ledger) == []
    assert open_batches(planned(teacher, quality_retries=2, batch_size=1), ledger) == [1, 2]
    before = len(teacher.requests)
    ask(planned(teacher, quality_retries=2), ledger)
    assert sorted(teacher.marks()[before:]) == ["#0001", "#0002"]


def test_an_answer_that_was_cut_off_gets_twice_the_room(teacher: FakeTeacher, ledger: Ledger, tmp_path: Path) -> None:
    teacher.behaviour = lambda asked: cut_short("ye") if asked.body["max_tokens"] < 200 else None
    plan = planned(teacher, 1, quality_retries=3, max_tokens=64)
    ask(plan, ledger)
    assert [asked.body["max_tokens"] for asked in teacher.requests] == [64, 128, 256]
    assert [row.quarantine for row in completions(plan, ledger, tmp_path)["0"]] == ["truncated", "truncated", None]


def test_a_refused_prompt_is_not_asked_again(teacher: FakeTeacher, ledger: Ledger, tmp_path: Path) -> None:
    teacher.behaviour = lambda asked: BAD_REQUEST if asked.mark == "#0003" else None
    plan = planned(teacher, quality_retries=2)
    ask(plan, ledger)
    assert teacher.marks().count("#0003") == 1
    assert len(completions(plan, ledger, tmp_path)["3"]) == 1


def test_the_sample_that_most_agree_with_is_trained_on(ledger: Ledger, tmp_path: Path) -> None:
    moody = Moody(**{"0000": ["yes", "no", " no", "maybe", "maybe"], "0001": ["yes"]})
    with FakeTeacher(answer=moody) as teacher:
        plan = planned(teacher, 2, samples=5, choose="majority", concurrency=1)
        ask(plan, ledger)
    found = completions(plan, ledger, tmp_path)
    assert sorted((row.completion, row.choice_score) for row in found["0"] if row.quarantine is None) == [
        *((" no", 2), ("no", 2), ("yes", 1))
    ]
    assert [row.choice_score for row in found["1"]] == [5] * 5


def test_the_first_usable_one_is_trained_on_where_nothing_else_is_said(
    teacher: FakeTeacher, ledger: Ledger, tmp_path: Path
) -> None:
    plan = planned(teacher, samples=3)
    ask(plan, ledger)
    assert {row.choice_score for rows in completions(plan, ledger, tmp_path).values() for row in rows} == {0}


def test_the_sample_that_the_scorer_prefers_is_trained_on(ledger: Ledger, tmp_path: Path) -> None:
    moody = Moody(**{"0000": ["yes", "yes", "no", "maybe"], "0001": ["yes", "no", "no", "no"]})
    rows = numbered_rows(2)
    with_reference = rows[0].prompt.model_copy(update={"reference": "no"})
    with FakeTeacher(answer=moody) as teacher:
        asked = make_teacher(teacher.url, samples=4, choose="scorer", concurrency=1)
        plan = make_plan(ListedRows([rows[0]._replace(prompt=with_reference), rows[1]]), asked, TASK)
        ask(plan, ledger)
    found = completions(plan, ledger, tmp_path)
    best = best_samples(row for rows in found.values() for row in rows)
    assert [best[rows[0].prompt_id].completion for rows in found.values()] == ["no", "no"]
    by_reference = sorted((row.completion, row.choice_score) for row in found["0"])
    assert by_reference == [("maybe", 0), ("no", 1), ("yes", 0), ("yes", 0)], "most do not agree with it"
