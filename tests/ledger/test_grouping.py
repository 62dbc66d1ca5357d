import asyncio
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from potstill.ledger import Caps, Ledger, Settlement
from potstill.ledger.entries import NO_CAPS, Admission
from potstill.ledger.grouping import GroupedLedger
from tests.ledger.test_ledger import REPLY, plan, rows


class CountedLedger(Ledger):
    """Counts its transactions, and fails when it is told to."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.groups: list[int] = []
        self.is_broken = False

    def write(self, settlements: Sequence[Settlement], wanted: Sequence[Any]) -> Any:
        if self.is_broken:
            raise OSError("disk full")
        self.groups.append(len(settlements) + len(wanted))
        return super().write(settlements, wanted)


@pytest.fixture
def ledger(tmp_path: Path) -> CountedLedger:
    return CountedLedger(f"sqlite:///{tmp_path / 'ledger.db'}")


def answered(attempt_id: int, key: str) -> Settlement:
    return Settlement(attempt_id, plan(key), "answered", REPLY, REPLY.usage, 200)


async def test_what_comes_together_is_one_transaction_and_each_gets_its_own_row(ledger: CountedLedger) -> None:
    grouped = GroupedLedger(ledger)
    admissions = await asyncio.gather(*(grouped.begin(plan(f"k{number}"), NO_CAPS) for number in range(50)))
    assert ledger.groups == [50]
    await asyncio.gather(
        *(grouped.settle(answered(row.attempt_id or 0, f"k{number}")) for number, row in enumerate(admissions))
    )
    assert ledger.groups == [50, 50]
    assert [key for key, status, _ in rows(ledger.url) if status == "answered"] == [f"k{n}" for n in range(50)]
    await grouped.close()


async def test_an_answer_counts_only_when_it_is_committed(ledger: CountedLedger) -> None:
    grouped = GroupedLedger(ledger)
    admission = await grouped.begin(plan("k"), NO_CAPS)
    waiting = asyncio.ensure_future(grouped.settle(answered(admission.attempt_id or 0, "k")))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert not ledger.find_answers(["k"])
    await waiting
    assert ledger.find_answers(["k"])
    await grouped.close()


async def test_a_transaction_that_fails_fails_all_who_wait_for_it_and_none_who_come_later(
    ledger: CountedLedger,
) -> None:
    grouped = GroupedLedger(ledger)
    ledger.is_broken = True
    outcomes = await asyncio.gather(
        *(grouped.begin(plan(f"k{number}"), NO_CAPS) for number in range(3)), return_exceptions=True
    )
    assert [str(outcome) for outcome in outcomes] == ["disk full"] * 3
    ledger.is_broken = False
    assert (await grouped.begin(plan("k0"), NO_CAPS)).attempt_id is not None
    await grouped.close()


@pytest.mark.parametrize("yields", [0, 1, 2, 5, 50])
async def test_a_sender_cancelled_while_it_begins_leaves_nothing_reserved(ledger: CountedLedger, yields: int) -> None:
    grouped = GroupedLedger(ledger, linger_seconds=0)
    task = asyncio.create_task(grouped.begin(plan("k"), Caps(Decimal(1))))
    for _ in range(yields):
        await asyncio.sleep(0 if yields < 50 else 0.001)
    task.cancel()
    outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    await grouped.flush()
    if isinstance(outcome, Admission):
        assert outcome.attempt_id is not None
        assert ledger.account("run").reserved_usd == plan("k").bound_usd
    else:
        assert ledger.account("run").reserved_usd == 0
        assert ledger.begin(plan("k")).attempt_id is not None
    await grouped.close()


async def test_a_settlement_is_written_though_its_waiter_is_cancelled(ledger: CountedLedger) -> None:
    grouped = GroupedLedger(ledger)
    admission = await grouped.begin(plan("k"), NO_CAPS)
    task = asyncio.ensure_future(grouped.settle(answered(admission.attempt_id or 0, "k")))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await grouped.close()
    assert ledger.find_answers(["k"])


async def test_what_was_paid_for_is_kept_though_the_database_fails_for_a_moment(
    ledger: CountedLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.ledger.grouping.RETRY_PAUSE_SECONDS", 0.02)
    grouped = GroupedLedger(ledger)
    admission = await grouped.begin(plan("k"), NO_CAPS)
    ledger.is_broken = True
    settling = asyncio.ensure_future(grouped.settle(answered(admission.attempt_id or 0, "k")))
    beginning = asyncio.create_task(grouped.begin(plan("later"), NO_CAPS))
    with pytest.raises(OSError, match="disk full"):
        await beginning
    assert not settling.done()
    ledger.is_broken = False
    await settling
    assert ledger.find_answers(["k"])
    await grouped.close()


async def test_a_database_that_stays_away_is_told(ledger: CountedLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.ledger.grouping.RETRY_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr("potstill.ledger.grouping.RETRY_SECONDS", 0.1)
    grouped = GroupedLedger(ledger)
    admission = await grouped.begin(plan("k"), NO_CAPS)
    ledger.is_broken = True
    with pytest.raises(OSError, match="disk full"):
        await grouped.settle(answered(admission.attempt_id or 0, "k"))
    await grouped.close()


async def test_an_answer_that_cannot_be_stored_harms_nobody_else_and_keeps_its_cost(ledger_url: str) -> None:
    ledger = CountedLedger(ledger_url)
    grouped = GroupedLedger(ledger)
    ids = [(await grouped.begin(plan(key), NO_CAPS)).attempt_id or 0 for key in "abc"]
    settlements = [answered(attempt_id, key) for attempt_id, key in zip(ids, "abc", strict=True)]
    unfit = REPLY._replace(message={"role": "assistant", "content": "\ud800"})
    settlements[1] = settlements[1]._replace(reply=unfit)
    await asyncio.gather(*(grouped.settle(settlement) for settlement in settlements))
    assert [(key, status) for key, status, _ in rows(ledger_url)] == [
        ("a", "answered"),
        ("b", "unusable"),
        ("c", "answered"),
    ]
    costs = ledger.costs("abc")
    assert costs["b"].cost_usd == costs["a"].cost_usd > 0
    assert costs["b"].last_error == "the ledger's database does not take what came of it"
    assert set(ledger.find_answers("abc")) == {"a", "c"}
    assert ledger.account("run").reserved_usd == 0
    await grouped.close()


async def test_who_begins_what_cannot_be_stored_takes_no_answer_with_it(ledger_url: str) -> None:
    ledger = CountedLedger(ledger_url)
    grouped = GroupedLedger(ledger)
    admission = await grouped.begin(plan("k"), NO_CAPS)
    settling = grouped.settle(answered(admission.attempt_id or 0, "k"))
    beginning = grouped.begin(plan("unfit")._replace(model="\ud800"), NO_CAPS)
    _, refused = await asyncio.gather(settling, beginning, return_exceptions=True)
    assert isinstance(refused, Exception)
    assert ledger.find_answers(["k"])
    await grouped.close()


async def test_an_answer_that_cannot_be_stored_keeps_nobody_from_beginning(ledger_url: str) -> None:
    ledger = CountedLedger(ledger_url)
    grouped = GroupedLedger(ledger)
    admission = await grouped.begin(plan("k"), NO_CAPS)
    unfit = REPLY._replace(message={"role": "assistant", "content": "\ud800"})
    settling = grouped.settle(answered(admission.attempt_id or 0, "k")._replace(reply=unfit))
    beginning = asyncio.ensure_future(grouped.begin(plan("next"), NO_CAPS))
    await settling
    assert (await beginning).attempt_id is not None
    assert [(key, status) for key, status, _ in rows(ledger_url)] == [("k", "unusable"), ("next", "in_flight")]
    await grouped.close()
