"""What a session does for those who share it: interrupts, stops, a ledger that fails, and its own end."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from potstill.errors import NotAuthorisedError, PotstillError, TransientTeacherError
from potstill.ledger import Caps, Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.teacher import asking
from potstill.teacher.outcome import Step
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import ListedRows
from potstill.teacher.session import TeacherSession
from tests.fake_teacher import (
    BAD_REQUEST,
    EMPTY,
    HANG,
    QUICK,
    SERVER_ERROR,
    UNAUTHORISED,
    WITHOUT_USAGE,
    Asked,
    FakeTeacher,
    Fault,
    cut_short,
    error,
    make_teacher,
    numbered_rows,
)

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("hurried")]


class Door:
    """Answers of a teacher stand behind it until it opens."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def answer(self, mark: str) -> str:
        self._open.wait(20)
        return f"answer to {mark}"

    def open(self) -> None:
        self._open.set()


def planned(teacher: FakeTeacher, count: int, first: int = 0, **fields: Any) -> TeachPlan:
    return make_plan(ListedRows(numbered_rows(count, first)), make_teacher(teacher.url, **fields), None)


def statuses(url: str) -> list[str]:
    with create_engine(url).connect() as connection:
        return sorted(row[0] for row in connection.execute(text("SELECT status FROM attempts")))


def hang_after_the_first(asked: Asked) -> Fault | None:
    return HANG if asked.number else None


@contextmanager
def interrupted_once(teacher: FakeTeacher, requests: int) -> Iterator[None]:
    """Ctrl-C reaches the main thread when so many requests have come, or where they never do: nobody waits for ever."""
    over = threading.Event()

    def press() -> None:
        try:
            teacher.wait_for(requests)
        finally:
            if not over.wait(0.1):
                os.kill(os.getpid(), signal.SIGINT)

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits "ignore"
    thread = threading.Thread(target=press)
    try:
        with pytest.raises(KeyboardInterrupt), _beside(thread, over):
            yield
    finally:
        signal.signal(signal.SIGINT, inherited)


@contextmanager
def _beside(thread: threading.Thread, over: threading.Event) -> Iterator[None]:
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_the_requests_of_an_interrupted_caller_stop_and_count_at_their_bound(ledger: Ledger, url: str) -> None:
    with FakeTeacher(hang_after_the_first) as teacher:
        plan = planned(teacher, 40, concurrency=4)
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session, interrupted_once(teacher, 5):
            session.answer()
        assert len(teacher.requests) == 5, "nothing was asked after the interrupt"
        assert statuses(url) == ["answered", *["unknown"] * 4]
        costs = ledger.costs(answer.key for answer in plan.answers()).values()
        unknown = sum((cost.unknown_usd for cost in costs), Decimal(0))
        assert ledger.account(plan.run).committed_usd == teacher.billed_usd + unknown > teacher.billed_usd


def test_a_session_that_ends_while_requests_are_in_flight_closes_their_rows_first(ledger: Ledger, url: str) -> None:
    with FakeTeacher(hang_after_the_first) as teacher, ThreadPoolExecutor(1) as pool:
        plan = planned(teacher, 10, concurrency=3)
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
            caller = pool.submit(session.answer)
            teacher.wait_for(4)
        with pytest.raises(CancelledError):
            caller.result(timeout=5)
        assert statuses(url) == ["answered", "unknown", "unknown", "unknown"]
        teacher.behaviour = None
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
            assert session.answer().answered == 9


def test_whoever_leaves_while_another_asks_takes_nothing_from_them(ledger: Ledger) -> None:
    door = Door()
    with FakeTeacher(answer=door.answer) as teacher, ThreadPoolExecutor(1) as pool:
        plan = planned(teacher, 1)
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
            staying = pool.submit(session.answer)
            teacher.wait_for(1)
            with interrupted_once(teacher, 1):
                session.answer()
            door.open()
            assert staying.result(timeout=10).answered == 1
        assert len(teacher.requests) == 1, "and nothing was asked twice"


def test_whoever_waits_for_anothers_answer_asks_when_that_one_leaves(ledger: Ledger, url: str) -> None:
    door = Door()
    with FakeTeacher(answer=door.answer) as teacher, ThreadPoolExecutor(1) as pool:
        plan = planned(teacher, 1)
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
            staying = pool.submit(lambda: (teacher.wait_for(1), session.answer())[1])
            with interrupted_once(teacher, 1):
                session.answer()
            door.open()
            assert staying.result(timeout=10).answered == 1
    assert statuses(url) == ["answered", "unknown"]


def test_an_interrupted_probe_proves_nothing(ledger: Ledger) -> None:
    with FakeTeacher(lambda asked: HANG) as teacher:
        plan = planned(teacher, 20)
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
            with interrupted_once(teacher, 1):
                session.answer()
            teacher.behaviour = lambda asked: SERVER_ERROR
            with pytest.raises(TransientTeacherError):
                session.answer()
        assert len(set(teacher.marks()[1:])) == 1


@pytest.mark.parametrize("fault", [EMPTY, WITHOUT_USAGE, BAD_REQUEST], ids=lambda fault: fault.name)
def test_a_first_prompt_that_never_gets_an_answer_does_not_stop_the_others(ledger: Ledger, fault: Fault) -> None:
    with FakeTeacher(lambda asked: fault if asked.mark == "#0000" else None) as teacher:
        plan = planned(teacher, 12)
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
            report = session.answer()
    assert (report.answered, report.unanswered + report.refused) == (11, 1)


@pytest.mark.parametrize("fault", [EMPTY, WITHOUT_USAGE], ids=lambda fault: fault.name)
def test_an_endpoint_whose_answers_can_never_be_used_is_left_after_three_prompts(ledger: Ledger, fault: Fault) -> None:
    with FakeTeacher(lambda asked: fault) as teacher:
        plan = planned(teacher, 40)
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session, pytest.raises(TransientTeacherError):
            session.answer()
    assert len(set(teacher.marks())) == 3
    assert len(teacher.requests) == 9


def test_a_stop_reaches_those_who_wait_for_the_servers_long_pause(ledger: Ledger) -> None:
    def behave(asked: Asked) -> Fault | None:
        if asked.number == 2:
            time.sleep(0.2)
            return UNAUTHORISED
        return error(429, retry_after="60") if asked.number == 1 else None

    with FakeTeacher(behave) as teacher:
        plan = planned(teacher, 10, concurrency=2)
        started = time.monotonic()
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session, pytest.raises(NotAuthorisedError):
            session.answer()
    assert time.monotonic() - started < 10
    assert len(teacher.requests) == 3


def test_a_stop_does_not_keep_the_pace_of_what_is_no_longer_sent(ledger: Ledger) -> None:
    with FakeTeacher(lambda asked: UNAUTHORISED if asked.number else None) as teacher:
        plan = planned(teacher, 100, rpm=240)
        started = time.monotonic()
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session, pytest.raises(NotAuthorisedError):
            session.answer()
    assert time.monotonic() - started < 10, "25 s at this pace"


class FullLedger(Ledger):
    """A disk that is full from the third answer on."""

    settled = 0

    def write(self, settlements: Any, wanted: Any) -> Any:
        if settlements and FullLedger.settled + len(settlements) > 2:
            raise OSError("disk full")
        FullLedger.settled += len(settlements)
        return super().write(settlements, wanted)


@pytest.mark.parametrize("budget", [None, Decimal("0.003")], ids=["without a cap", "with a cap that others wait for"])
def test_a_ledger_that_cannot_be_written_stops_the_spending(
    url: str, budget: Decimal | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FullLedger, "settled", 0)
    monkeypatch.setattr("potstill.ledger.grouping.RETRY_SECONDS", 0.1)
    monkeypatch.setattr("potstill.ledger.grouping.RETRY_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr("potstill.teacher.sending.ROOM_SECONDS", 0.1)
    with FakeTeacher(latency=0.02) as teacher, ThreadPoolExecutor(1) as pool:
        plan = planned(teacher, 100, concurrency=4)
        with (
            TeacherSession(plan, FullLedger(url), Caps(budget), QUICK) as session,
            pytest.raises(PotstillError, match="cannot be written: disk full"),
        ):
            pool.submit(session.answer).result(timeout=20)
        assert len(teacher.requests) <= 2 + 4
    in_flight, answered = statuses(url).count("in_flight"), statuses(url).count("answered")
    assert in_flight == len(teacher.requests) - answered > 0, "what could not be closed still counts at its bound"
    reserved = Ledger(url).account(plan.run).committed_usd - answered * teacher.billed_usd / len(teacher.requests)
    assert reserved > in_flight * plan.rates.upper_bound(0, plan.teacher.max_tokens)


def test_a_callback_that_fails_is_told_and_leaves_no_row_open(ledger: Ledger, url: str) -> None:
    def fail(step: Step) -> None:
        raise BrokenPipeError("the reader of the progress is gone")

    with FakeTeacher() as teacher:
        plan = planned(teacher, 5)
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session, pytest.raises(BrokenPipeError):
            session.answer(on_step=fail)
    assert statuses(url) == ["answered"] * 5


def test_all_batches_together_keep_to_one_concurrency(ledger: Ledger) -> None:
    at_once, peak, lock = 0, 0, threading.Lock()

    def answer(mark: str) -> str:
        nonlocal at_once, peak
        with lock:
            at_once += 1
            peak = max(peak, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1
        return f"answer to {mark}"

    with FakeTeacher(answer=answer) as teacher, ThreadPoolExecutor(4) as pool:
        plan = planned(teacher, 40, concurrency=3)
        batches = [range(start, start + 10) for start in range(0, 40, 10)]
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
            reports = list(pool.map(session.answer, batches))
    assert [report.answered for report in reports] == [10] * 4
    assert peak == 3


def test_a_large_batch_starts_no_more_tasks_than_it_has_requests_in_flight(ledger: Ledger) -> None:
    tasks: list[int] = []
    with FakeTeacher() as teacher:
        plan = planned(teacher, 150, concurrency=4)
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
            session.answer(on_step=lambda step: tasks.append(len(asyncio.all_tasks())))
    assert len(tasks) == 150
    assert max(tasks) < 5 * 4


def test_who_is_between_two_rounds_of_requests_begins_none_once_the_session_is_cancelled(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_between, may_go_on = threading.Event(), threading.Event()

    def find_bad_ones(*arguments: Any) -> Any:
        is_between.set()
        may_go_on.wait(10)
        return bad_ones(*arguments)

    bad_ones = asking._bad_ones
    monkeypatch.setattr(asking, "_bad_ones", find_bad_ones)
    with FakeTeacher(lambda asked: cut_short("half")) as teacher, ThreadPoolExecutor(1) as pool:
        with TeacherSession(planned(teacher, 8, quality_retries=1), ledger, NO_CAPS, QUICK) as session:
            answering = pool.submit(session.answer)
            assert is_between.wait(10)
            session.cancel()
            may_go_on.set()
            assert isinstance(answering.exception(10), CancelledError)
            with pytest.raises(CancelledError):
                session.answer()
        assert len(teacher.requests) == 8
