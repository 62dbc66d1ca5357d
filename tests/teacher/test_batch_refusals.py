"""Refusals in a batch that name no fault of a prompt: many in the same words speak against the account or the endpoint."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from potstill.errors import PermanentTeacherError
from potstill.ledger import Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.ledger.spend import add_up
from potstill.teacher.doubts import MANY
from potstill.teacher.outcome import BatchReport
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import ListedRows
from potstill.teacher.session import TeacherSession
from tests.batch_teacher import BatchTeacher, error
from tests.fake_teacher import QUICK, make_teacher, numbered_rows

ANSWERED = 10


class Died(BaseException):
    """The process ends here: nothing of it runs any more."""


@pytest.fixture
def teacher() -> Iterator[BatchTeacher]:
    with BatchTeacher() as teacher:
        teacher.runs_by_itself = True
        yield teacher


@pytest.fixture(params=["openai_compatible", "anthropic"])
def planned(request: pytest.FixtureRequest, teacher: BatchTeacher) -> Callable[[int], TeachPlan]:
    def make(count: int) -> TeachPlan:
        asked = make_teacher(teacher.url, provider=request.param, batch_poll_seconds=0.005, mode="batch")
        return make_plan(ListedRows(numbered_rows(count)), asked, None)

    return make


def ask(plan: TeachPlan, ledger: Ledger) -> BatchReport:
    with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
        return session.answer_in_batches()


def refuse_after(number: int, teacher: BatchTeacher, refused: int) -> None:
    """As where a limit is met once so many are answered."""
    said = error(400, "invalid_request_error", "This workspace has used up what it may spend today.")
    teacher.outcomes = {f"#{one:04d}": said for one in range(number, number + refused)}


def test_a_limit_that_is_met_in_the_middle_of_a_batch_loses_no_prompt(
    planned: Callable[[int], TeachPlan], ledger: Ledger, teacher: BatchTeacher
) -> None:
    plan = planned(ANSWERED + MANY)
    refuse_after(ANSWERED, teacher, MANY)
    with pytest.raises(PermanentTeacherError, match=r"refuses every prompt.*may spend today"):
        ask(plan, ledger)
    assert [len(batch.requests) for batch in teacher.batches.values()] == [ANSWERED + MANY, MANY]
    teacher.outcomes = {}
    report = ask(plan, ledger)
    assert (report.found, report.answered, report.refused) == (ANSWERED, MANY, 0)
    assert not teacher.billed_twice()


def test_fewer_are_refused_for_good(planned: Callable[[int], TeachPlan], ledger: Ledger, teacher: BatchTeacher) -> None:
    plan = planned(ANSWERED + MANY - 1)
    refuse_after(ANSWERED, teacher, MANY - 1)
    assert ask(plan, ledger).refused == MANY - 1
    assert ask(plan, ledger).refused == MANY - 1
    assert len(teacher.batches) == 1


def test_refusals_in_other_words_each_are_the_prompts_own(
    planned: Callable[[int], TeachPlan], ledger: Ledger, teacher: BatchTeacher
) -> None:
    teacher.outcomes = {
        f"#{one:04d}": error(400, "invalid_request_error", f"field {one} is wrong")
        for one in range(ANSWERED, ANSWERED + MANY)
    }
    report = ask(planned(ANSWERED + MANY), ledger)
    assert (report.answered, report.refused) == (ANSWERED, MANY)


def test_a_collection_that_is_cut_off_loses_none_either(
    planned: Callable[[int], TeachPlan], ledger_url: str, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(Ledger):
        settled = 0

        def write(self, settlements: Any, wanted: Any) -> Any:
            Dying.settled += bool(settlements)
            if Dying.settled == 3:
                raise Died
            return super().write(settlements, wanted)

    monkeypatch.setattr("potstill.teacher.collecting.GROUP", 4)
    plan = planned(ANSWERED + MANY)
    refuse_after(ANSWERED, teacher, MANY)
    with pytest.raises(Died):
        ask(plan, Dying(ledger_url))
    monkeypatch.setattr("potstill.owner.Owner.is_dead", lambda owner: True)
    ledger = Ledger(ledger_url)
    with pytest.raises(PermanentTeacherError, match="refuses every prompt"):
        ask(plan, ledger)
    assert add_up(ledger.spend(plan.run)).answered == ANSWERED
    teacher.outcomes = {}
    assert ask(plan, ledger).answered == MANY
