"""A server may say what no database holds: the one prompt that it says it of bears that alone."""

import json

import pytest

from potstill.ledger import Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.llm.retrying import RetryPolicy
from potstill.teacher.plan import make_plan
from potstill.teacher.rows import ListedRows
from potstill.teacher.session import TeacherSession
from tests.fake_teacher import FakeTeacher, Fault, make_teacher, numbered_rows

QUICK = RetryPolicy(attempts=2, first_wait_seconds=0.001, longest_wait_seconds=0.01)
REFUSAL = Fault("nul in a 400", 400, json.dumps({"error": {"message": "bad \0 text"}}).encode())
CHOICE = {"message": {"role": "assistant", "content": "a\0b"}, "finish_reason": "st\0op"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3}
ANSWER = Fault("nul in a 200", 200, json.dumps({"choices": [CHOICE], "usage": USAGE}).encode())


@pytest.mark.parametrize(
    ("fault", "answered"), [(REFUSAL, 11), (ANSWER, 12)], ids=lambda value: getattr(value, "name", "")
)
def test_what_no_database_holds_stops_no_run(ledger_url: str, fault: Fault, answered: int) -> None:
    with FakeTeacher(lambda asked: fault if asked.mark == "#0003" else None, latency=0.01) as teacher:
        plan = make_plan(ListedRows(numbered_rows(12)), make_teacher(teacher.url), None)
        with TeacherSession(plan, Ledger(ledger_url), NO_CAPS, QUICK) as session:
            report = session.answer()
        assert (report.answered, report.refused) == (answered, 12 - answered)
        assert len(teacher.requests) == 12
