"""A provider's queue that has no room for another batch, which OpenAI says only once it has taken the batch."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from potstill.errors import TransientTeacherError
from potstill.ledger import Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.llm.batches.base import Limits
from potstill.llm.batches.openai import OpenAIBatches
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import ListedRows
from potstill.teacher.session import TeacherSession
from tests.batch_teacher import Batch, BatchTeacher, error
from tests.fake_teacher import QUICK, make_teacher, numbered_rows

FULL = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None}


@pytest.fixture
def teacher() -> Iterator[BatchTeacher]:
    with BatchTeacher() as teacher:
        teacher.runs_by_itself = True
        yield teacher


def planned(teacher: BatchTeacher, count: int, first: int = 0) -> TeachPlan:
    asked = make_teacher(teacher.url, provider="openai_compatible", batch_poll_seconds=0.005, mode="batch")
    return make_plan(ListedRows(numbered_rows(count, first)), asked, None)


def ask(plan: TeachPlan, ledger: Ledger, say: Callable[[str], None] | None = None) -> Any:
    with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
        return session.answer_in_batches(say=say)


def hold(monkeypatch: pytest.MonkeyPatch, requests: int) -> None:
    """So many requests are a batch at most."""
    monkeypatch.setattr(OpenAIBatches, "limits", Limits(requests, 10**8))


def sizes(teacher: BatchTeacher) -> list[int]:
    return [len(batch.requests) for batch in teacher.batches.values()]


@pytest.mark.parametrize(("count", "rest"), [(43, 3), (41, 1)])
def test_one_that_has_taken_a_batch_makes_the_others_no_smaller(
    ledger: Ledger, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch, count: int, rest: int
) -> None:
    hold(monkeypatch, 20)
    teacher.rejections = [[], [FULL], [FULL]]
    assert ask(planned(teacher, count), ledger).answered == count
    assert sizes(teacher) == [20, 20, rest, 20, rest]
    assert not teacher.billed_twice()


def test_one_that_takes_none_gets_halves_of_the_largest(
    ledger: Ledger, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch, 20)
    teacher.rejections = [[FULL]] * 3
    assert ask(planned(teacher, 41), ledger).answered == 41
    assert sizes(teacher) == [20, 20, 1, 10, 10, 10, 10, 1], "two, then one more each time"
    assert not teacher.billed_twice()


def test_where_a_batch_has_ended_the_next_goes_up_while_others_run(
    ledger: Ledger, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch, 4)
    teacher.polls = 10**6
    teacher.rejections = [[], [], [FULL]]
    running: list[int] = []

    def end(*batches: Batch) -> None:
        for batch in batches:
            if not batch.is_ended:
                teacher.finish(batch)

    def say(said: str) -> None:
        batches = list(teacher.batches.values())
        if "handing in" in said:
            running.append(sum(not batch.is_ended for batch in batches))
        elif "Enqueued" in said:
            end(batches[0])
        elif len(batches) == 4:
            end(*batches)
        elif len(batches) == 3:
            end(batches[2])

    assert ask(planned(teacher, 12), ledger, say).answered == 12
    assert sizes(teacher) == [4, 4, 4, 4]
    assert running == [0, 1, 2, 1], "the last one goes up beside the second"


def test_one_without_room_for_a_single_request_ends_the_run(ledger: Ledger, teacher: BatchTeacher) -> None:
    teacher.rejections = [[FULL]] * 3
    plan = planned(teacher, 3)
    with pytest.raises(TransientTeacherError, match="Enqueued token limit reached: run the same again later"):
        ask(plan, ledger)
    assert sizes(teacher) == [3, 1, 1]
    assert ledger.account(plan.run).committed_usd == 0


@pytest.mark.parametrize(("first", "answered"), [(0, 39), (100, 0)])
def test_what_had_no_room_is_asked_for_and_what_always_fails_is_not_for_ever(
    ledger: Ledger, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch, first: int, answered: int
) -> None:
    hold(monkeypatch, 4)
    teacher.rejections = [[], *[[FULL], []] * 4]
    teacher.outcomes = {f"#{number:04d}": error(500, "api_error") for number in (1, *range(100, 140))}
    report = ask(planned(teacher, 40, first), ledger)
    assert (report.answered, report.unanswered) == (answered, 40 - answered)
    assert len(teacher.batches) < 50
