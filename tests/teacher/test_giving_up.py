"""One prompt that never gets a usable answer stops no run; an endpoint that gives none stops it, and keeps all prompts."""

import math
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from potstill.artifacts import ArtifactStore
from potstill.errors import TransientTeacherError
from potstill.ledger import AttemptPlan, Ledger, Settlement
from potstill.ledger.entries import NO_CAPS
from potstill.llm import breaker
from potstill.llm.messages import Reply
from potstill.llm.retrying import RetryPolicy
from potstill.records import Completion, Usage, read_parquet
from potstill.teacher.collect import collect
from potstill.teacher.collecting import close_token
from potstill.teacher.outcome import BatchReport
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import ListedRows
from potstill.teacher.session import TeacherSession
from tests.fake_teacher import (
    EMPTY,
    SERVER_ERROR,
    WITHOUT_USAGE,
    Asked,
    FakeTeacher,
    Fault,
    make_teacher,
    numbered_rows,
)

POLICY = RetryPolicy(attempts=3, first_wait_seconds=0.001, longest_wait_seconds=0.01)
BAD = "#0004"


@pytest.fixture
def ledger(ledger_url: str) -> Ledger:
    return Ledger(ledger_url)


def bad_one(fault: Fault) -> Callable[[Asked], Fault | None]:
    return lambda asked: fault if asked.mark == BAD else None


def planned(url: str, count: int = 8) -> TeachPlan:
    return make_plan(ListedRows(numbered_rows(count)), make_teacher(url, concurrency=2), None)


def ask(plan: TeachPlan, ledger: Ledger, policy: RetryPolicy = POLICY) -> BatchReport:
    with TeacherSession(plan, ledger, NO_CAPS, policy) as session:
        return session.answer()


def kept_from_training(plan: TeachPlan, ledger: Ledger, directory: Path) -> list[str]:
    store = ArtifactStore(directory / "store")
    rows = list(read_parquet(store.path(collect(plan, ledger, store)) / "completions.parquet", Completion))
    assert len(rows) == len(plan.rows)
    return [row.quarantine for row in rows if row.quarantine]


def test_a_prompt_that_only_gets_empty_answers_is_put_aside_and_not_paid_for_again(
    ledger: Ledger, tmp_path: Path
) -> None:
    with FakeTeacher(bad_one(EMPTY)) as teacher:
        plan = planned(teacher.url)
        report = ask(plan, ledger)
        assert (report.answered, report.refused, report.unanswered) == (7, 1, 0)
        assert teacher.marks().count(BAD) == POLICY.attempts
        again = ask(plan, ledger)
        assert (again.attempts, again.refused) == (0, 1)
    assert kept_from_training(plan, ledger, tmp_path) == ["empty"]


@pytest.mark.parametrize("fault", [SERVER_ERROR, WITHOUT_USAGE], ids=lambda fault: fault.name)
def test_one_that_fails_in_another_way_is_left_for_two_more_runs(ledger: Ledger, tmp_path: Path, fault: Fault) -> None:
    with FakeTeacher(bad_one(fault)) as teacher:
        plan = planned(teacher.url)
        assert ask(plan, ledger).unanswered == 1
        with suppress(TransientTeacherError):  # nothing else is missing, and the endpoint may be down
            ask(plan, ledger)
        assert ask(plan, ledger).refused == 1
        assert ask(plan, ledger).attempts == 0
        assert teacher.marks().count(BAD) == 9
    (reason,) = kept_from_training(plan, ledger, tmp_path)
    assert reason.startswith("error: 9 attempts: ")


def test_an_endpoint_that_gives_nothing_usable_loses_no_prompt(ledger: Ledger, tmp_path: Path) -> None:
    with FakeTeacher(lambda asked: EMPTY) as teacher:
        plan = planned(teacher.url)
        for _ in range(4):
            with pytest.raises(TransientTeacherError):
                ask(plan, ledger)
        teacher.behaviour = None
        assert ask(plan, ledger).answered == 8
    assert kept_from_training(plan, ledger, tmp_path) == []


@pytest.mark.flow  # it asks for 1,200 answers
@pytest.mark.parametrize("concurrency", [8, 32])
def test_an_endpoint_whose_answers_become_empty_all_at_once_loses_no_prompt(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, concurrency: int
) -> None:
    enough = 40 + 3 * 2 * concurrency
    monkeypatch.setattr(breaker, "LASTING_SECONDS", math.inf)

    def fail(asked: Asked) -> Fault | None:
        """The outage has lasted once so many have met it, however long that takes."""
        if asked.number > enough:
            breaker.LASTING_SECONDS = 0.0
        return EMPTY if asked.number >= 40 else None

    with FakeTeacher(fail, latency=0.005) as teacher:
        plan = make_plan(ListedRows(numbered_rows(1200)), make_teacher(teacher.url, concurrency=concurrency), None)
        with pytest.raises(TransientTeacherError, match="attempts failed, for"):
            ask(plan, ledger)
        assert len(teacher.requests) > enough, "some met nothing else, as often as it takes"
        teacher.behaviour = None
        assert ask(plan, ledger).answered == 1160


@pytest.mark.flow  # the pauses between their attempts take seconds
def test_many_bad_prompts_that_outlast_all_good_ones_do_not_speak_against_the_endpoint(ledger: Ledger) -> None:
    bad = {f"#{number:04}" for number in range(2, 62, 4)}
    patient = RetryPolicy(attempts=6, first_wait_seconds=0.1, longest_wait_seconds=3)
    with FakeTeacher(lambda asked: EMPTY if asked.mark in bad else None, latency=0.02) as teacher:
        plan = make_plan(ListedRows(numbered_rows(260)), make_teacher(teacher.url, concurrency=16), None)
        report = ask(plan, ledger, patient)
    assert (report.answered, report.refused, report.unanswered) == (245, 15, 0)


@pytest.mark.parametrize(("answered_after", "is_given_up"), [(1, False), (2, True)])
def test_of_an_endpoint_that_fails_only_answers_since_a_second_attempt_speak_against_the_prompt(
    ledger: Ledger, answered_after: int, *, is_given_up: bool
) -> None:
    plan = planned("http://127.0.0.1:1/v1", 2)
    bad, good = (
        AttemptPlan(answer.key, "p", "run", "teach", "openai_compatible", "m", Decimal(1), plan.rates)
        for answer in plan.answers()
    )
    reply = Reply({"role": "assistant", "content": "yes"}, "yes", "stop", Usage(input=1, output=1))
    for number in (1, 2, 3):
        ledger.settle(Settlement(begun(ledger, bad), bad, "unusable", usage=Usage(input=1, output=1), http_status=200))
        if number == answered_after:
            ledger.settle(Settlement(begun(ledger, good), good, "answered", reply, reply.usage, 200))
    assert ledger.give_up(bad.answer_key, "empty", 3, is_failing=True) is is_given_up
    assert ledger.give_up(bad.answer_key, "empty", 3)


@pytest.mark.parametrize(
    ("attempt", "is_given_up"),
    [
        ({"status": "failed", "http_status": 500, "error": "HTTP 500"}, True),
        ({"status": "failed", "http_status": 429, "error": "HTTP 429"}, False),
        ({"status": "failed", "error": "cancelled before it was sent"}, False),
        ({"status": "failed", "error": "no connection to http://127.0.0.1:1/v1"}, False),
        ({"status": "unknown", "error": "connection lost"}, True),
        ({"status": "unknown", "error": "cancelled"}, False),
    ],
)
def test_a_refusal_of_the_pace_what_was_cancelled_and_what_never_left_say_nothing_of_the_prompt(
    ledger: Ledger, attempt: dict[str, Any], *, is_given_up: bool
) -> None:
    plan = planned("http://127.0.0.1:1/v1", 2)
    bad, good = (
        AttemptPlan(answer.key, "p", "run", "teach", "openai_compatible", "m", Decimal(1), plan.rates)
        for answer in plan.answers()
    )
    for _ in range(9):
        ledger.settle(Settlement(begun(ledger, bad), bad, **attempt))
    reply = Reply({"role": "assistant", "content": "yes"}, "yes", "stop", Usage(input=1, output=1))
    ledger.settle(Settlement(begun(ledger, good), good, "answered", reply, reply.usage, 200))
    assert ledger.give_up(bad.answer_key, "HTTP 500", 3) is is_given_up
    assert ledger.look_up([bad.answer_key]).refused == ({bad.answer_key} if is_given_up else set())
    assert ledger.begin(bad).why_not == ("refused" if is_given_up else None)


@pytest.mark.parametrize(("http_status", "is_given_up"), [(None, False), (500, True)])
def test_a_batch_that_was_never_carried_out_says_nothing_of_its_prompts(
    ledger: Ledger, http_status: int | None, *, is_given_up: bool
) -> None:
    plan = planned("http://127.0.0.1:1/v1", 2)
    bad, good = (
        AttemptPlan(answer.key, "p", "run", "teach", "openai_compatible", "m", Decimal(1), plan.rates)
        for answer in plan.answers()
    )
    for number in range(9):
        token = f"token{number}"
        (admission,) = ledger.begin_batch(token, "openai_compatible", "http://127.0.0.1:1/v1", "run", [(bad, NO_CAPS)])
        if http_status is None:
            close_token(ledger, token, "batch refused (token_limit_exceeded): the queue is full")
        else:
            failed = Settlement(admission.attempt_id or 0, bad, "failed", http_status=http_status, error="HTTP 500")
            ledger.settle(failed)
    reply = Reply({"role": "assistant", "content": "yes"}, "yes", "stop", Usage(input=1, output=1))
    ledger.settle(Settlement(begun(ledger, good), good, "answered", reply, reply.usage, 200))
    assert ledger.give_up(bad.answer_key, "HTTP 500", 3) is is_given_up


def begun(ledger: Ledger, plan: AttemptPlan) -> int:
    attempt_id = ledger.begin(plan).attempt_id
    assert attempt_id is not None
    return attempt_id


def test_a_provider_that_goes_down_stops_the_run_and_the_next_one_goes_on(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.llm.breaker.LASTING_SECONDS", 0.2)
    patient = POLICY._replace(attempts=60)
    with FakeTeacher(lambda asked: SERVER_ERROR if asked.number >= 20 else None) as teacher:
        plan = planned(teacher.url, 100)
        with pytest.raises(
            TransientTeacherError, match=r"attempts failed, for \d+ s: run the same again when it is up"
        ):
            ask(plan, ledger, patient)
        standing = ledger.look_up(answer.key for answer in plan.answers())
        assert (len(standing.missing), standing.refused) == (80, set())
        teacher.behaviour = None
        report = ask(plan, ledger)
    assert (report.found, report.answered) == (20, 80)
