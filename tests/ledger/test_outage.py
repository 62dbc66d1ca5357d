"""A database that is away for a while takes nothing that was paid for with it, and leaves no claim behind."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection

from potstill.errors import LedgerError, UsageError
from potstill.ledger import Ledger, Settlement
from potstill.ledger.entries import NO_CAPS
from potstill.ledger.grouping import GroupedLedger
from tests.ledger.test_ledger import REPLY, begun, plan, rows
from tests.teacher.simulation.world import Process, World


class AwayLedger(Ledger):
    """Its database may be away, or vanish just after it has carried out a commit."""

    is_away = False
    tries = 0

    def write(self, settlements: Sequence[Settlement], wanted: Sequence[Any]) -> Any:
        self.tries += 1
        if self.is_away:
            raise LedgerError("ledger: server closed the connection")
        return super().write(settlements, wanted)

    def vanish_after_commit(self, monkeypatch: pytest.MonkeyPatch, number: int = 1) -> None:
        """It is the commit of this number, from now on, whose end nobody sees."""
        real, commits = self._database.writing, count(1)

        @contextmanager
        def writing() -> Iterator[Connection]:
            with real() as connection:
                yield connection
            if next(commits) == number:
                raise LedgerError("ledger: server closed the connection")

        monkeypatch.setattr(self._database, "writing", writing)


@pytest.fixture
def ledger(ledger_url: str) -> AwayLedger:
    return AwayLedger(ledger_url)


@pytest.fixture
def hasten(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def hasten(**seconds: float) -> None:
        for name, value in {"RETRY_PAUSE_SECONDS": 0.01, **seconds}.items():
            monkeypatch.setattr(f"potstill.ledger.grouping.{name}", value)

    return hasten


def answered(attempt_id: int | None) -> Settlement:
    return Settlement(attempt_id or 0, plan("k"), "answered", REPLY, REPLY.usage, 200)


def test_an_outage_of_four_minutes_costs_no_answer_and_is_told_once(
    ledger: AwayLedger, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(seed=1)
    process = Process(world, {}, lambda *_: None)
    grouped = GroupedLedger(ledger, executor=process.thread)

    def come_back() -> None:
        ledger.is_away = False

    async def ask() -> None:
        admission = await grouped.begin(plan("k"), NO_CAPS)
        ledger.is_away = True
        world.after(240, come_back)
        await grouped.settle(answered(admission.attempt_id))
        process.end()

    with caplog.at_level(logging.WARNING):
        process.start(ask())
        world.run()
    assert world.now > 240
    assert ledger.find_answers(["k"])
    told = [record.getMessage() for record in caplog.records if record.name == "potstill.ledger.grouping"]
    assert told == [
        "the ledger cannot be written: ledger: server closed the connection;"
        " it is tried again for 5 minutes, and nothing is sent"
    ]
    world.bury()


async def test_nothing_begins_while_what_was_paid_for_waits_to_be_written(
    ledger: AwayLedger, hasten: Callable[..., None]
) -> None:
    hasten()
    grouped = GroupedLedger(ledger)
    admission = await grouped.begin(plan("k"), NO_CAPS)
    ledger.is_away = True
    settling = asyncio.ensure_future(grouped.settle(answered(admission.attempt_id)))
    await until(lambda: ledger.tries > 3)
    beginning = asyncio.create_task(grouped.begin(plan("later"), NO_CAPS))
    tries = ledger.tries
    await until(lambda: ledger.tries > tries + 3)
    assert not settling.done()
    assert not beginning.done()
    ledger.is_away = False
    await settling
    assert (await beginning).attempt_id is not None
    await grouped.close()


async def test_who_leaves_waits_for_a_database_that_is_away_no_longer_than_seconds(
    ledger: AwayLedger, hasten: Callable[..., None]
) -> None:
    hasten(LAST_SECONDS=0.1)
    grouped = GroupedLedger(ledger)
    admission = await grouped.begin(plan("k"), NO_CAPS)
    ledger.is_away = True
    settling = asyncio.ensure_future(grouped.settle(answered(admission.attempt_id)))
    await until(lambda: ledger.tries > 2)
    beginning = asyncio.create_task(grouped.begin(plan("later"), NO_CAPS))
    async with asyncio.timeout(5):
        await grouped.close()
    for task in (settling, beginning):
        with pytest.raises(LedgerError):
            await task


async def test_what_was_given_up_is_written_when_the_same_process_next_looks_for_orphans(
    ledger: AwayLedger, ledger_url: str, hasten: Callable[..., None]
) -> None:
    hasten(RETRY_SECONDS=0.05)
    grouped = GroupedLedger(ledger)
    admission = await grouped.begin(plan("k"), NO_CAPS)
    ledger.is_away = True
    with pytest.raises(LedgerError):
        await grouped.settle(answered(admission.attempt_id))
    await grouped.close()
    with pytest.raises(LedgerError):
        ledger.close_orphans()
    other = Ledger(ledger_url)
    assert other.is_claimed("k")
    assert other.close_orphans() == 0
    assert not other.is_claimed("k")
    assert other.find_answers(["k"])["k"].reply == REPLY
    assert other.account("run").reserved_usd == 0


def test_what_was_begun_by_a_commit_whose_end_nobody_saw_is_no_claim_for_ever(
    ledger: AwayLedger, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(ledger, plan("first"))
    ledger.vanish_after_commit(monkeypatch)
    with pytest.raises(LedgerError):
        ledger.begin(plan("k"))
    monkeypatch.undo()
    assert ledger.begin(plan("k")).why_not == "claimed"
    ledger.close_orphans()
    assert {key: status for key, status, _ in rows(ledger_url)} == {"first": "in_flight", "k": "failed"}
    assert ledger.account("run").committed_usd == plan("first").bound_usd
    begun(ledger, plan("k"))


@pytest.mark.parametrize("number", [1, 2])
def test_nor_is_it_where_nothing_was_written_before(
    ledger: AwayLedger, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    ledger.vanish_after_commit(monkeypatch, number)
    with pytest.raises(LedgerError):
        ledger.begin(plan("k"))
    ledger.close_orphans()
    assert ledger.account("run").committed_usd == 0
    begun(ledger, plan("k"))


def test_what_was_never_begun_is_not_closed(ledger: AwayLedger) -> None:
    begun(ledger, plan("first"))
    with pytest.raises(Exception, match=r"surrogates|codec"):
        ledger.begin(plan("k")._replace(model="\ud800"))
    ledger.close_orphans()
    assert ledger.account("run").committed_usd == plan("first").bound_usd
    begun(ledger, plan("k"))


@pytest.mark.parametrize(("query", "seconds"), [("", 5), ("?connect_timeout=60", 60)])
def test_a_server_that_is_gone_is_not_waited_for_by_the_hour(
    query: str, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def connect(*_: Any, **parameters: Any) -> None:
        asked.append(parameters)
        raise psycopg.OperationalError("no route to host")

    monkeypatch.setattr("psycopg.connect", connect)
    with pytest.raises(UsageError, match="no route to host"):
        Ledger(f"postgresql://user@127.0.0.1:1/ledger{query}")
    assert int(asked[0]["connect_timeout"]) == seconds
    assert asked[0]["tcp_user_timeout"] <= 10_000


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(2000):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never comes")
