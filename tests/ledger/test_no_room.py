"""Who finds no room is told in the same transaction whether anything in flight may still make some."""

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine, event

from potstill.ledger import Caps, Ledger, Settlement
from potstill.ledger.entries import Admission
from tests.ledger.test_ledger import begun, plan

CAP = Caps(Decimal("0.025"))
MONTH = "month/r/2026-11"


def test_who_finds_no_room_is_told_what_is_in_flight_its_own_group_included(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    begun(ledger, plan("a"))
    second, third = ledger.write([], [(plan("b"), CAP), (plan("c"), CAP)])
    assert second.attempt_id is not None
    assert third == Admission(None, "no_room", in_flight=2)


def test_what_is_settled_in_the_group_that_finds_no_room_is_not_in_flight_any_more(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    unknown = Settlement(begun(ledger, plan("a", "0.02")), plan("a", "0.02"), "unknown")
    assert ledger.write([unknown], [(plan("b"), CAP)]) == [Admission(None, "no_room", in_flight=0)]


def test_another_run_of_the_month_may_make_room_and_a_run_of_another_month_may_not(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    begun(ledger, plan("a", "0.02", run="one")._replace(month=MONTH))
    begun(ledger, plan("b", "0.02", run="two")._replace(month="month/r/2026-12"))
    wanted = plan("c", run="three")._replace(month=MONTH)
    assert ledger.begin(wanted, Caps(month_usd=Decimal("0.025"))) == Admission(None, "no_room", in_flight=1)


def test_however_many_find_no_room_the_same_statements_are_sent(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    begun(ledger, plan("a", "0.02"))
    wanted = [(plan(f"k{number}", "0.02")._replace(month=MONTH), CAP) for number in range(50)]
    ledger.write([], wanted[:1])  # opens the month's account
    with statements() as few:
        ledger.write([], wanted[:1])
    with statements() as many:
        admissions = ledger.write([], wanted)
    assert {admission.in_flight for admission in admissions} == {1}
    assert many == few


@contextmanager
def statements() -> Iterator[list[str]]:
    """What is sent to any database meanwhile."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)
