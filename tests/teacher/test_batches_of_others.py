"""What another run has handed in at the same endpoint: waited for where it holds the same prompts, and left to its owner."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest

from potstill.errors import PermanentTeacherError
from potstill.ledger import Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.ledger.spend import add_up
from potstill.teacher.outcome import Step
from potstill.teacher.plan import TeachPlan, make_plan, recipe_of
from potstill.teacher.rows import ListedRows
from potstill.teacher.session import TeacherSession
from tests.batch_teacher import BatchTeacher, error, refuse
from tests.fake_teacher import QUICK, make_teacher, numbered_rows

pytestmark = pytest.mark.flow


class Left(BaseException):
    """The process ends here, and its batch goes on."""


@pytest.fixture
def url(ledger_url: str) -> str:
    return ledger_url


@pytest.fixture
def teacher() -> Iterator[BatchTeacher]:
    with BatchTeacher() as teacher:
        teacher.polls = 10**6
        yield teacher


def planned(teacher: BatchTeacher, count: int = 5, first: int = 0, **fields: Any) -> TeachPlan:
    given = {"provider": "openai_compatible", "batch_poll_seconds": 0.02, "mode": "batch", **fields}
    return make_plan(ListedRows(numbered_rows(count, first)), make_teacher(teacher.url, **given), None)


def ask(plan: TeachPlan, url: str, say: Callable[[str], None] | None = None) -> Any:
    with TeacherSession(plan, Ledger(url), NO_CAPS, QUICK) as session:
        return session.answer_in_batches(say=say)


def hand_in(plan: TeachPlan, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run does that ends while its batch goes on."""

    def leave(said: str) -> None:
        if "the provider says" in said:
            raise Left

    with pytest.raises(Left):
        ask(plan, url, leave)
    monkeypatch.setattr("potstill.owner.Owner.is_dead", lambda owner: True)


def statuses(plan: TeachPlan, url: str) -> dict[str, int]:
    return {row.status: row.attempts for row in Ledger(url).spend(plan.run)}


def test_what_a_batch_was_handed_in_for_is_known(
    teacher: BatchTeacher, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(teacher)._replace(recipe="tickets")
    for one in (plan, planned(teacher, first=100)):
        hand_in(one, url, monkeypatch)
    orders = Ledger(url).open_orders("openai_compatible", teacher.url)
    assert [(order.model, order.month) for order in orders] == [("fake-1", plan.month()), ("fake-1", None)]
    assert recipe_of(plan.month()) == "tickets"
    assert [order.batch for order in orders] == Ledger(url).open_batches("openai_compatible", teacher.url)


class TestOfOtherPrompts:
    @pytest.fixture
    def theirs(self, teacher: BatchTeacher, url: str, monkeypatch: pytest.MonkeyPatch) -> TeachPlan:
        theirs = planned(teacher)
        hand_in(theirs, url, monkeypatch)
        teacher.polls = 0
        return theirs

    @pytest.fixture
    def mine(self, teacher: BatchTeacher) -> TeachPlan:
        return planned(teacher, first=100)

    def end(self, teacher: BatchTeacher, *errors: dict[str, Any]) -> None:
        batch = next(iter(teacher.batches.values()))
        batch.errors.extend(errors)
        teacher.finish(batch)

    def test_one_that_ends_is_settled_for_its_owner(
        self, teacher: BatchTeacher, url: str, theirs: TeachPlan, mine: TeachPlan
    ) -> None:
        self.end(teacher)
        report = ask(mine, url)
        assert (report.answered, report.attempts) == (5, 5)
        assert statuses(theirs, url) == {"answered": 5}

    def test_lines_at_fault_are_refused_and_this_run_goes_on(
        self, teacher: BatchTeacher, url: str, theirs: TeachPlan, mine: TeachPlan
    ) -> None:
        self.end(teacher, {"code": "invalid_request", "message": "bad parameter", "line": 2})
        assert ask(mine, url).answered == 5
        assert statuses(theirs, url) == {"refused": 1, "failed": 4}
        (refused,) = Ledger(url).look_up(answer.key for answer in theirs.answers()).refused
        assert refused == list(theirs.answers())[1].key

    @pytest.mark.parametrize("code", ["model_not_found", "billing_hard_limit_reached", "token_limit_exceeded"])
    def test_one_that_is_rejected_as_a_whole_ends_the_run_of_its_owner_only(
        self, teacher: BatchTeacher, url: str, theirs: TeachPlan, mine: TeachPlan, code: str
    ) -> None:
        self.end(teacher, {"code": code, "message": "no", "line": None})
        assert ask(mine, url).answered == 5
        assert [len(batch.requests) for batch in teacher.batches.values()] == [5, 5], "nor is this run's queue full"
        assert statuses(theirs, url) == {"failed": 5}

    def test_a_key_that_its_requests_are_refused_is_its_owners_affair(
        self, teacher: BatchTeacher, url: str, theirs: TeachPlan, mine: TeachPlan
    ) -> None:
        teacher.outcomes = {"#0002": error(403, "permission_error")}
        self.end(teacher)
        assert ask(mine, url).answered == 5
        assert statuses(theirs, url) == {"answered": 4, "failed": 1}

    @pytest.mark.parametrize("status", [401, 404])
    def test_one_that_this_key_does_not_see_stays_as_it_is(
        self,
        teacher: BatchTeacher,
        url: str,
        theirs: TeachPlan,
        mine: TeachPlan,
        status: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("potstill.teacher.watching.PATIENCE_SECONDS", 0.0)
        teacher.fail_next("state", refuse(status))
        assert ask(mine, url).answered == 5
        assert statuses(theirs, url) == {"in_flight": 5}
        self.end(teacher)
        assert ask(theirs, url).answered == 5

    def test_its_owner_is_told_when_it_hands_in_the_same_again(
        self, teacher: BatchTeacher, url: str, theirs: TeachPlan, mine: TeachPlan
    ) -> None:
        broken = {"code": "model_not_found", "message": "no such model", "line": None}
        self.end(teacher, broken)
        ask(mine, url)
        teacher.rejections = [[broken]]
        with pytest.raises(PermanentTeacherError, match="no such model"):
            ask(theirs, url)
        assert add_up(Ledger(url).spend(theirs.run)).cost_usd == 0


class TestOfTheSamePrompts:
    """They are handed in while somebody asks online, and whoever did so has gone."""

    @pytest.fixture
    def session(self, teacher: BatchTeacher, url: str) -> Iterator[TeacherSession]:
        with TeacherSession(planned(teacher, 12, mode="online"), Ledger(url), NO_CAPS, QUICK) as session:
            yield session

    @pytest.fixture
    def theirs(
        self, teacher: BatchTeacher, session: TeacherSession, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> TeachPlan:
        """Half of the session's prompts."""
        hand_in(planned(teacher, 6), url, monkeypatch)
        return planned(teacher, 6)

    def test_the_others_are_asked_for_then_it_is_waited_for_and_what_it_left_is_asked_for_too(
        self, teacher: BatchTeacher, session: TeacherSession, url: str, theirs: TeachPlan
    ) -> None:
        teacher.outcomes = {"#0003": error(500, "api_error")}
        asked: list[int] = []
        steps: list[Step] = []
        said: list[str] = []

        def say(line: str) -> None:
            said.append(line)
            if "waiting for it" in line:
                asked.append(teacher.operations().count("ask"))
                for batch in teacher.batches.values():
                    batch.polls_left = 1

        report = session.answer(on_step=steps.append, say=say)
        assert asked == [6]
        assert said[0] == "another run has handed in 6 of these prompts as a batch: waiting for it"
        assert (report.answers, report.found, report.answered, report.unanswered) == (12, 5, 7, 0)
        assert sum(step.found + step.answered for step in steps) == 12
        assert not teacher.billed_twice()
        assert add_up(Ledger(url).spend(theirs.run)).answered == 5

    def test_one_that_is_rejected_is_asked_for_online(
        self, teacher: BatchTeacher, session: TeacherSession, theirs: TeachPlan
    ) -> None:
        (batch,) = teacher.batches.values()
        batch.errors.append({"code": "model_not_found", "message": "no such model", "line": None})
        teacher.finish(batch)
        assert session.answer().answered == 12

    @pytest.mark.parametrize("mode", ["online", "batch"])
    def test_one_at_another_address_is_left_to_whoever_knows_it(
        self, teacher: BatchTeacher, url: str, theirs: TeachPlan, mode: str
    ) -> None:
        with BatchTeacher() as elsewhere:
            elsewhere.runs_by_itself = True
            plan = planned(elsewhere, 12, mode=mode)
            with TeacherSession(plan, Ledger(url), NO_CAPS, QUICK) as session:
                report = session.answer() if mode == "online" else session.answer_in_batches()
        assert (report.answered, report.unanswered) == (6, 6)
        assert "another address" in str(report.last_error)

    def test_many_callers_wait_together_and_all_end_when_the_session_is_cancelled(
        self, teacher: BatchTeacher, session: TeacherSession, theirs: TeachPlan
    ) -> None:
        waiting = threading.Semaphore(0)

        def say(line: str) -> None:
            if "waiting for it" in line:
                waiting.release()

        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(session.answer, range(start, start + 4), say=say) for start in (0, 2, 4)]
            for _ in asking:
                assert waiting.acquire(timeout=10)
            session.cancel()
            assert [type(future.exception(10)) for future in asking] == [CancelledError] * 3

    def test_an_interrupted_caller_ends(
        self, teacher: BatchTeacher, url: str, theirs: TeachPlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("potstill.teacher.session.LOOK_SECONDS", 0.02)
        interrupted = threading.Event()

        def interrupt() -> None:
            if interrupted.is_set():
                raise KeyboardInterrupt

        with (
            pytest.raises(KeyboardInterrupt),
            TeacherSession(planned(teacher, 6, mode="online"), Ledger(url), NO_CAPS, QUICK) as session,
        ):
            session.answer(on_wait=interrupt, say=lambda _: interrupted.set())
