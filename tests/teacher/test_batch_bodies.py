"""What it takes to write the bodies of many batches: each reads its own part of the plan."""

from collections.abc import Iterator

import pytest

from potstill.ledger import Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.llm.batches.base import Limits
from potstill.llm.batches.openai import OpenAIBatches
from potstill.teacher.plan import make_plan
from potstill.teacher.rows import InputRow, ListedRows
from potstill.teacher.session import TeacherSession
from tests.batch_teacher import BatchTeacher
from tests.fake_teacher import QUICK, make_teacher, numbered_rows

ROWS, BATCH, CHUNK = 240, 6, 8


class Counted(ListedRows):
    num_read = 0

    def read(self, start: int, stop: int) -> Iterator[InputRow]:
        Counted.num_read += stop - start
        return super().read(start, stop)


def test_many_batches_do_not_go_through_the_whole_plan_each(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenAIBatches, "limits", Limits(BATCH, 10**8))
    for module in ("plan", "batching"):
        monkeypatch.setattr(f"potstill.teacher.{module}.CHUNK_ROWS", CHUNK)
    with BatchTeacher() as teacher:
        asked = make_teacher(teacher.url, provider="openai_compatible", batch_poll_seconds=0.005, mode="batch")
        plan = make_plan(Counted(numbered_rows(ROWS)), asked, None)
        before, reads = 0, []

        def say(said: str) -> None:
            nonlocal before
            if "handing in" in said:
                reads.append(Counted.num_read - before)
                before = Counted.num_read

        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
            assert session.answer_in_batches(say=say).answered == ROWS
        assert [len(batch.requests) for batch in teacher.batches.values()] == [BATCH] * (ROWS // BATCH)
        assert max(reads) <= BATCH + 4 * CHUNK, (
            "those of the batch, and the rest of the chunks that it begins and ends in"
        )
