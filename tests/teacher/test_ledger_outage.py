"""What a session does while its ledger's database is away: it sends nothing, keeps what is paid for, and can be left."""

import datetime as dt
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from potstill.errors import LedgerError
from potstill.ledger import Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.llm.pricing import MIDNIGHT, Rates, Tier
from potstill.llm.retrying import RetryPolicy
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import ListedRows
from potstill.teacher.session import TeacherSession
from tests.fake_teacher import FakeTeacher, make_teacher, numbered_rows

pytestmark = pytest.mark.flow

QUICK = RetryPolicy(attempts=2, first_wait_seconds=0.001, longest_wait_seconds=0.01)
CONCURRENCY = 4


class AwayLedger(Ledger):
    """Its database goes away with the third answer."""

    tries = 0
    settled = 0
    is_mended = False

    def write(self, settlements: Any, wanted: Any) -> Any:
        if settlements and self.settled >= 2 and not self.is_mended:
            self.tries += 1
            raise LedgerError("ledger: server closed the connection")
        self.settled += len(settlements)
        return super().write(settlements, wanted)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture(autouse=True)
def _hastened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.ledger.grouping.RETRY_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr("potstill.ledger.grouping.LAST_SECONDS", 0.2)


def planned(teacher: FakeTeacher) -> TeachPlan:
    return make_plan(ListedRows(numbered_rows(40)), make_teacher(teacher.url, concurrency=CONCURRENCY), None)


def statuses(url: str) -> set[str]:
    with create_engine(url).connect() as connection:
        return {row[0] for row in connection.execute(text("SELECT status FROM attempts"))}


def when(holds: Callable[[], bool], do: Callable[[], None]) -> threading.Thread:
    def watch() -> None:
        deadline = time.monotonic() + 20
        while not holds() and time.monotonic() < deadline:
            time.sleep(0.005)
        do()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def patience(seconds: float) -> Callable[[], None]:
    deadline = time.monotonic() + seconds

    def check() -> None:
        assert time.monotonic() < deadline, "it waits for a claim that nobody will close"

    return check


def test_nothing_is_sent_while_the_database_is_away_and_what_was_paid_for_is_kept(url: str) -> None:
    ledger = AwayLedger(url)
    unsettled: list[int] = []

    def mend() -> None:
        unsettled.append(len(teacher.requests) - ledger.settled)
        ledger.is_mended = True

    with FakeTeacher(latency=0.02) as teacher:
        plan = planned(teacher)
        thread = when(lambda: ledger.tries > 10, mend)
        with suppress(LedgerError), TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
            session.answer()  # somebody may have wanted to begin just then
        thread.join()
        assert unsettled[0] <= CONCURRENCY
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
            session.answer()
        assert len(teacher.requests) == 40, "nothing is paid for twice"
    assert statuses(url) == {"answered"}


def test_what_one_session_gave_up_holds_no_later_one_of_the_same_process(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.ledger.grouping.RETRY_SECONDS", 0.1)
    ledger = AwayLedger(url)
    with FakeTeacher(latency=0.02) as teacher:
        plan = planned(teacher)
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session, pytest.raises(LedgerError):
            session.answer()
        assert statuses(url) == {"answered", "in_flight"}
        with TeacherSession(plan, Ledger(url), NO_CAPS, QUICK) as session:
            session.answer(on_wait=patience(10))
        assert len(teacher.requests) == 40, "nothing is paid for twice"
    assert statuses(url) == {"answered"}


def test_ctrl_c_ends_a_session_whose_database_is_away(url: str) -> None:
    ledger = AwayLedger(url)
    pressed: list[float] = []
    over = threading.Event()

    def press() -> None:
        if not over.is_set():
            pressed.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

    @contextmanager
    def interrupted() -> Iterator[None]:
        """Or never, where what is to be interrupted ends before."""
        thread = when(lambda: ledger.tries > 3 or over.is_set(), press)
        try:
            yield
        finally:
            over.set()
            thread.join()

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with (
            FakeTeacher(latency=0.02) as teacher,
            pytest.raises(KeyboardInterrupt),
            interrupted(),
            TeacherSession(planned(teacher), ledger, NO_CAPS, QUICK) as session,
        ):
            session.answer()
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert time.monotonic() - pressed[0] < 5


def test_an_answer_costs_the_price_of_the_moment_at_which_it_came_and_is_priced_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = AwayLedger(url)
    free, noon = Decimal(0), MIDNIGHT.replace(hour=12)
    late = Tier(free, free, free, free, request=Decimal("0.25"), from_time=noon)
    rates = Rates(free, free, free, "list", request=Decimal("0.5"), tiers=(late,))
    asked: list[Decimal] = []

    def now() -> dt.time:
        asked.append(Decimal("0.25") if ledger.tries > 10 else Decimal("0.5"))
        return noon if ledger.tries > 10 else MIDNIGHT

    monkeypatch.setattr("potstill.llm.pricing._now", now)
    with FakeTeacher(latency=0.02) as teacher:
        given = planned(teacher)
        plan = given._replace(rates=rates)
        thread = when(lambda: ledger.tries > 10, lambda: setattr(ledger, "is_mended", True))
        with suppress(LedgerError), TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
            session.answer()
        thread.join()
    (spent,) = Ledger(url).spend(plan.run)
    assert len(asked) == spent.attempts
    assert spent.cost_usd == sum(asked) == ledger.account(plan.run).spent_usd
    assert set(asked[:3]) == {Decimal("0.5")}
