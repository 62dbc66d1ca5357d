"""Batch mode at a cap: what others have in flight may make room, and is waited for."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from potstill.errors import BudgetReachedError
from potstill.ledger import AttemptPlan, Caps, Ledger, Settlement
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import ListedRows
from potstill.teacher.session import TeacherSession
from tests.batch_teacher import BatchTeacher
from tests.fake_teacher import QUICK, make_teacher, numbered_rows

CAPS = Caps(month_usd=Decimal(1))
NEARLY_ALL = Decimal("0.9999")


@pytest.fixture
def plan() -> Iterator[TeachPlan]:
    with BatchTeacher() as teacher:
        asked = make_teacher(teacher.url, provider="openai_compatible", batch_poll_seconds=0.005, mode="batch")
        yield make_plan(ListedRows(numbered_rows(3)), asked, None, recipe="tickets")


@pytest.fixture
def theirs(plan: TeachPlan) -> AttemptPlan:
    """A request of another run of the same recipe."""
    names = ("k", "p", "teach/other", "teach", "openai_compatible", "fake-1")
    return AttemptPlan(*names, NEARLY_ALL, plan.rates, plan.month())


def ask(plan: TeachPlan, ledger: Ledger, say: Any = None) -> Any:
    with TeacherSession(plan, ledger, CAPS, QUICK) as session:
        return session.answer_in_batches(say=say)


def test_requests_in_flight_are_waited_for(plan: TeachPlan, theirs: AttemptPlan, ledger_url: str) -> None:
    others, said = Ledger(ledger_url), []
    admission = others.begin(theirs, CAPS)
    assert admission.attempt_id is not None
    theirs_ends = Settlement(admission.attempt_id, theirs, "failed")

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 3:
            others.settle(theirs_ends)

    assert ask(plan, Ledger(ledger_url), say).answered == 3
    assert said[:3] == ["the budget has no room until some of 1 requests in flight have ended"] * 3


def test_those_of_a_dead_process_are_not(
    plan: TeachPlan, theirs: AttemptPlan, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(ledger_url).begin(theirs, CAPS)

    def die(_: str) -> None:
        monkeypatch.setattr("potstill.owner.Owner.is_dead", lambda owner: True)

    with pytest.raises(BudgetReachedError):
        ask(plan, Ledger(ledger_url), die)


def test_a_batch_of_another_run_is_not_waited_for(plan: TeachPlan, theirs: AttemptPlan, ledger_url: str) -> None:
    Ledger(ledger_url).begin_batch("token123", "openai_compatible", "http://127.0.0.1:9/v1", "run", [(theirs, CAPS)])
    with pytest.raises(BudgetReachedError):
        ask(plan, Ledger(ledger_url))
