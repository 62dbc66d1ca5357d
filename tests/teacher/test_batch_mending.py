"""Bad answers asked for again in batches: at half the price, and never online."""

from collections.abc import Iterator
from typing import Any

import pytest

from potstill.ledger import Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.recipe import Task
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import ListedRows
from potstill.teacher.session import TeacherSession
from potstill.teacher.unfinished import open_batches
from tests.batch_teacher import EMPTY, BatchTeacher, Outcome, error
from tests.fake_teacher import QUICK, make_teacher, numbered_rows

DOWN = error(500, "api_error")


@pytest.fixture
def teacher() -> Iterator[BatchTeacher]:
    with BatchTeacher() as teacher:
        teacher.runs_by_itself = True
        teacher.answer = lambda mark: "maybe" if mark == "#0001" else "yes"
        yield teacher


def planned(teacher: BatchTeacher, **fields: Any) -> TeachPlan:
    asked = make_teacher(teacher.url, mode="batch", batch_poll_seconds=0.005, **fields)
    return make_plan(ListedRows(numbered_rows(4)), asked, Task(kind="classification", labels=("yes", "no")))


def ask(plan: TeachPlan, ledger: Ledger) -> Any:
    with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
        return session.answer_in_batches()


def sizes(teacher: BatchTeacher) -> list[int]:
    return [len(batch.requests) for batch in teacher.batches.values()]


def then(teacher: BatchTeacher, outcome: Outcome) -> None:
    """Once the bad answer was given, nothing but this comes of its prompt."""

    def answer(mark: str) -> str:
        if mark != "#0001":
            return "yes"
        teacher.outcomes[mark] = outcome
        return "maybe"

    teacher.answer = answer


def test_every_further_sample_gets_its_round(teacher: BatchTeacher, ledger: Ledger) -> None:
    plan = planned(teacher, quality_retries=4)
    report = ask(plan, ledger)
    assert sizes(teacher) == [4, 1, 1, 1, 1]
    assert (report.answered, report.unanswered, report.unmended) == (8, 0, 0)
    assert open_batches(plan, ledger) == []


def test_rounds_that_failed_take_none_from_further_samples(teacher: BatchTeacher, ledger: Ledger) -> None:
    class Recovering(dict[str, Outcome]):
        """Down while the first three batches are worked at."""

        def get(self, mark: str, default: Any = None) -> Any:
            return DOWN if mark == "#0001" and len(teacher.batches) <= 3 else default

    teacher.outcomes = Recovering()
    plan = planned(teacher, quality_retries=2)
    assert ask(plan, ledger).unmended == 0
    assert sizes(teacher) == [4, 1, 1, 1, 1, 1], "three rounds for nothing, the bad answer, two further ones"
    assert open_batches(plan, ledger) == []


def test_a_further_sample_that_never_comes_is_counted_and_does_not_hold_up_the_rest(
    teacher: BatchTeacher, ledger: Ledger
) -> None:
    then(teacher, DOWN)
    report = ask(planned(teacher, quality_retries=1), ledger)
    assert sizes(teacher) == [4, 1, 1, 1, 1]
    assert (report.answered, report.unanswered, report.unmended) == (4, 0, 1)
    assert "1 prompts keep their bad answers" in report.describe_unmended()


def test_a_further_sample_that_only_comes_empty_is_not_paid_for_again(teacher: BatchTeacher, ledger: Ledger) -> None:
    then(teacher, EMPTY)
    plan = planned(teacher, quality_retries=1)
    report = ask(plan, ledger)
    assert (report.refused, report.unmended, sizes(teacher)) == (1, 0, [4, 1, 1, 1, 1])
    ask(plan, ledger)
    assert len(teacher.batches) == 5


def test_what_is_asked_online_after_one_round_includes_further_samples(teacher: BatchTeacher, ledger: Ledger) -> None:
    plan = planned(teacher, quality_retries=2, stragglers_online=True)
    assert ask(plan, ledger).unmended == 1
    with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
        session.answer()
    assert (sizes(teacher), teacher.operations().count("ask")) == ([4], 2)
    assert open_batches(plan, ledger) == []
