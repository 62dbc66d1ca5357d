"""A batch is closed in statements that a database takes, however many requests it holds."""

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from potstill.ledger import AttemptPlan, Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.llm.batches.base import BatchResult
from potstill.llm.pricing import Rates
from potstill.teacher.collecting import close_batch, close_lost, close_unsubmitted

RATES = Rates(Decimal(1), Decimal(1), Decimal(1), "given")
ADDRESS = "http://127.0.0.1:9/v1"


class Counting(Ledger):
    """Knows how many attempts were settled at once."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.settled: list[int] = []

    def write(self, settlements: Any, wanted: Any) -> Any:
        self.settled.append(len(settlements))
        return super().write(settlements, wanted)


@pytest.mark.parametrize("close", ["unsubmitted", "lost", "without results"])
async def test_a_large_batch_is_closed_a_group_at_a_time(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch, close: str
) -> None:
    monkeypatch.setattr("potstill.teacher.collecting.GROUP", 4)
    ledger = Counting(ledger_url)
    begun = AttemptPlan("k", "p", "run", "teach", "openai", "m", Decimal(1), RATES)
    wanted = [(begun._replace(answer_key=f"{number:032d}"), NO_CAPS) for number in range(10)]
    ledger.begin_batch("token123", "openai", ADDRESS, "run", wanted)
    (row,) = ledger.open_batches("openai", ADDRESS)

    async def no_results() -> AsyncIterator[BatchResult]:
        for result in ():
            yield result

    if close == "unsubmitted":
        close_unsubmitted(ledger, row)
    elif close == "lost":
        close_lost(ledger, row, "gone")
    else:
        assert [step async for step in close_batch(ledger, row, no_results(), "run")]
    assert ledger.settled == [4, 4, 2]
    assert ledger.account("run").committed_usd == (10 if close == "lost" else 0)
    assert ledger.open_batches("openai", ADDRESS) == []
