"""On PostgreSQL, who stalls or vanishes within a transaction holds up the others for seconds only."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy import text

from potstill.errors import LedgerError
from potstill.ledger import Ledger, Settlement
from potstill.ledger.database import SESSION_SETTINGS, WRITERS_LOCK
from potstill.ledger.entries import NO_CAPS
from potstill.ledger.grouping import GroupedLedger
from potstill.ledger.owners import LEASE_SECONDS, RENEW_SECONDS
from tests.ledger.test_ledger import REPLY, begun, plan
from tests.ledger.test_outage import until
from tests.postgres import PostgresServer

pytestmark = pytest.mark.flow


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest.fixture
def opened(url: str) -> Callable[..., Ledger]:
    """`opened(lock_timeout="…")` is a ledger whose address has that setting."""
    return lambda **settings: Ledger(url + "".join(f"%20-c{name}%3D{value}" for name, value in settings.items()))


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Another program is in the middle of a transaction that writes, and does nothing."""
    with psycopg.connect(url) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (WRITERS_LOCK,))
        yield


def answered(attempt_id: int | None) -> Settlement:
    return Settlement(attempt_id or 0, plan("k"), "answered", REPLY, REPLY.usage, 200)


def test_a_writer_that_stalls_is_ended_and_those_who_wait_for_it_go_on(
    opened: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(SESSION_SETTINGS, "idle_in_transaction_session_timeout", "3s")
        stalled = opened()
    other = opened(lock_timeout="20s")
    with pytest.raises(LedgerError), stalled._database.writing():
        begun(other, plan("k"))
    assert other.is_claimed("k")
    begun(stalled, plan("later"))


def test_whoever_waits_for_a_lock_that_never_ends_is_told(opened: Callable[..., Ledger], url: str) -> None:
    ledger = opened(lock_timeout="200ms&password=secret")
    with locked(url), pytest.raises(LedgerError, match="another session keeps it locked: pg_locks") as caught:
        ledger.begin(plan("k"))
    assert "secret" not in str(caught.value)
    begun(ledger, plan("k"))


async def test_what_was_paid_for_is_held_until_the_lock_is_free(
    opened: Callable[..., Ledger], url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("potstill.ledger.grouping.RETRY_PAUSE_SECONDS", 0.01)
    ledger = opened(lock_timeout="200ms")
    grouped = GroupedLedger(ledger)
    admission = await grouped.begin(plan("k"), NO_CAPS)
    with caplog.at_level(logging.WARNING), locked(url):
        settling = asyncio.ensure_future(grouped.settle(answered(admission.attempt_id)))
        await until(lambda: "lock timeout; it is tried again for 5 minutes" in caplog.text)
        beginning = asyncio.create_task(grouped.begin(plan("later"), NO_CAPS))
        await asyncio.sleep(0.01)
        assert not settling.done()
    await settling
    assert (await beginning).attempt_id is not None
    assert ledger.find_answers(["k"])
    await grouped.close()


async def test_a_lock_that_never_ends_ends_the_run_in_the_end(
    opened: Callable[..., Ledger], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.ledger.grouping.RETRY_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("potstill.ledger.grouping.RETRY_SECONDS", 0.1)
    ledger = opened(lock_timeout="200ms")
    grouped = GroupedLedger(ledger)
    admission = await grouped.begin(plan("k"), NO_CAPS)
    with locked(url), pytest.raises(LedgerError, match="another session keeps it locked"):
        await grouped.settle(answered(admission.attempt_id))
    await grouped.close()
    ledger.close_orphans()
    assert ledger.find_answers(["k"]), "what was given up is written later"


def test_the_limits_fit_the_lease_and_an_address_may_set_its_own(opened: Callable[..., Ledger]) -> None:
    usual, own = opened(), opened(lock_timeout="7s")
    stall, patience = _seconds(usual, "idle_in_transaction_session_timeout"), _seconds(usual, "lock_timeout")
    assert 0 < stall < patience, "who waits does not give up before whoever stalls is ended"
    assert RENEW_SECONDS + 2 * stall < LEASE_SECONDS
    assert _seconds(own, "lock_timeout") == 7
    assert _seconds(own, "idle_in_transaction_session_timeout") == stall
    begun(own, plan("k"))
    assert usual.is_claimed("k"), "the address names its schema as well"


def test_a_machine_that_vanishes_is_noticed_by_the_server(opened: Callable[..., Ledger]) -> None:
    ledger = opened()
    names = ("idle", "interval", "count")
    idle, interval, times = (_seconds(ledger, f"tcp_keepalives_{name}") for name in names)
    assert 0 < idle + interval * times < LEASE_SECONDS / 2


def _seconds(ledger: Ledger, setting: str) -> float:
    with ledger._database.reading() as connection:
        query = text("SELECT extract(epoch FROM current_setting(:name)::interval)")
        return float(connection.scalar(query, {"name": setting}) or 0)
