import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from potstill.artifacts import ArtifactRef, StageKey, open_store
from potstill.errors import BudgetReachedError, NotAuthorisedError
from potstill.fingerprint import fingerprint
from potstill.ledger import Caps, Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.recipe import Recipe
from potstill.records import Prompt, write_parquet
from potstill.teacher.plan import TeachPlan, make_plan, split_batches
from potstill.teacher.rows import ListedRows
from potstill.teacher.sharing import begin_sessions, plan_of, shared_session, stop_sessions
from tests.fake_teacher import UNAUTHORISED, FakeTeacher, make_teacher, numbered_rows


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def planned(teacher: FakeTeacher, count: int = 24, **fields: Any) -> TeachPlan:
    return make_plan(ListedRows(numbered_rows(count)), make_teacher(teacher.url, **fields), None)


def sessions() -> int:
    return sum(thread.name == "teacher-session" for thread in threading.enumerate())


def test_the_first_user_opens_and_the_last_one_closes(teacher: FakeTeacher, ledger: Ledger) -> None:
    plan = planned(teacher)
    first, second = shared_session(plan, ledger, NO_CAPS), shared_session(plan, ledger, NO_CAPS)
    one, two = first.__enter__(), second.__enter__()
    assert one is two
    assert sessions() == 1
    first.__exit__(None, None, None)
    assert two.answer().answered == 24
    second.__exit__(None, None, None)
    assert sessions() == 0
    with shared_session(plan, ledger, NO_CAPS) as third:
        assert third is not one


def test_batches_in_many_threads_ask_for_each_answer_once_under_one_cap(teacher: FakeTeacher, ledger: Ledger) -> None:
    plan = planned(teacher, batch_size=4)
    budget = Decimal("0.002")

    def teach(index: int) -> None:
        with shared_session(plan, Ledger(), Caps(budget)) as session:
            session.answer(split_batches(plan)[index])

    with ThreadPoolExecutor(6) as pool:
        errors = [future.exception() for future in [pool.submit(teach, index) for index in range(6)]]
    assert any(isinstance(error, BudgetReachedError) for error in errors)
    assert 0 < ledger.account(plan.run).committed_usd == teacher.billed_usd <= budget
    assert len(set(teacher.marks())) == len(teacher.requests) < 24
    assert sessions() == 0


def test_a_user_who_fails_leaves_the_session_to_the_others(teacher: FakeTeacher, ledger: Ledger) -> None:
    plan = planned(teacher)
    with shared_session(plan, ledger, NO_CAPS) as session:
        with pytest.raises(ZeroDivisionError), shared_session(plan, ledger, NO_CAPS):
            raise ZeroDivisionError
        assert session.answer().answered == 24
    assert sessions() == 0


def test_a_session_that_was_stopped_is_not_kept_for_the_next_run(teacher: FakeTeacher, ledger: Ledger) -> None:
    plan = planned(teacher)
    teacher.behaviour = lambda asked: UNAUTHORISED
    with pytest.raises(NotAuthorisedError), shared_session(plan, ledger, NO_CAPS) as session:
        session.answer()
    teacher.behaviour = None
    with shared_session(plan, ledger, NO_CAPS) as session:
        assert session.answer().answered == 24


def test_an_interrupt_stops_what_waits_for_a_thread_too_and_a_new_run_in_the_same_process_teaches(
    teacher: FakeTeacher, ledger: Ledger
) -> None:
    plan = planned(teacher)
    with shared_session(plan, ledger, NO_CAPS):
        stop_sessions()
    with pytest.raises(CancelledError, match="the run is being interrupted"), shared_session(plan, ledger, NO_CAPS):
        pass
    assert teacher.requests == []
    begin_sessions()
    with shared_session(plan, ledger, NO_CAPS) as session:
        assert session.answer().answered == 24


def test_a_session_that_cannot_be_opened_leaves_nothing_behind(teacher: FakeTeacher, ledger: Ledger) -> None:
    plan = planned(teacher, api_key_env="NO_SUCH_KEY")
    for _ in range(2):
        with pytest.raises(NotAuthorisedError, match="NO_SUCH_KEY"), shared_session(plan, ledger, NO_CAPS):
            pass
    assert sessions() == 0


@pytest.mark.parametrize("other", ["address", "cap", "ledger"])
def test_what_differs_in_address_cap_or_ledger_is_another_session(
    teacher: FakeTeacher, ledger: Ledger, tmp_path: Path, other: str
) -> None:
    plan = planned(teacher)
    with FakeTeacher() as elsewhere, shared_session(plan, ledger, NO_CAPS) as session:
        others = {
            "address": (planned(elsewhere), ledger, NO_CAPS),
            "cap": (plan, ledger, Caps(Decimal(1))),
            "ledger": (plan, Ledger(f"sqlite:///{tmp_path / 'another.db'}"), NO_CAPS),
        }
        with shared_session(*others[other]) as apart:
            assert apart is not session


def test_the_plan_of_a_prompt_set_is_made_once(teacher: FakeTeacher) -> None:
    prompts = [row.prompt for row in numbered_rows(5)]
    ref: ArtifactRef = open_store().build(
        StageKey("curate", 1, fingerprint("five")),
        "PromptSet",
        lambda directory: write_parquet(directory / "prompts.parquet", prompts, Prompt),
    )
    recipe = Recipe.model_validate(
        {
            "name": "five",
            "task": {"kind": "extraction"},
            "curation": {"inputs": ["log.jsonl"]},
            "teacher": make_teacher(teacher.url).model_dump(),
            "student": {"base": "nothing"},
        }
    )
    plan = plan_of(recipe, ref)
    assert [answer.prompt for answer in plan.answers()] == prompts
    assert plan.task == recipe.task
    assert plan_of(recipe, ref) is plan
