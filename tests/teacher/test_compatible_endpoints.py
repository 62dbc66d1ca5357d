"""Endpoints that speak Chat Completions, each in its own way: what is sent, and what an answer is said to have cost."""

import json
from decimal import Decimal
from typing import Any

import pytest

from potstill.ledger import Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.teacher.plan import make_plan
from potstill.teacher.rows import ListedRows
from potstill.teacher.session import TeacherSession
from tests.fake_teacher import PRICE, QUICK, FakeTeacher, Fault, make_teacher, numbered_rows

pytestmark = pytest.mark.usefixtures("hurried")


@pytest.mark.parametrize(
    ("usage", "billed"),
    [
        ({"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623}, (20, 603)),
        (
            {"prompt_tokens": 12, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 317}},
            (12, 319),
        ),
    ],
    ids=["Gemini", "xAI"],
)
def test_the_ledger_books_what_the_model_thought_too(
    ledger: Ledger, usage: dict[str, Any], billed: tuple[int, int]
) -> None:
    choices = [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]
    answer = Fault("thought", 200, json.dumps({"choices": choices, "usage": usage}).encode(), usage=billed)
    with FakeTeacher(lambda _: answer) as teacher:
        plan = make_plan(ListedRows(numbered_rows(3)), make_teacher(teacher.url), None)
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
            assert session.answer().answered == 3
    costs = ledger.costs(planned.key for planned in plan.answers())
    per_answer = (billed[0] * PRICE.input_per_million + billed[1] * PRICE.output_per_million) / Decimal(1_000_000)
    assert [cost.cost_usd for cost in costs.values()] == [per_answer] * 3
