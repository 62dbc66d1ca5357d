"""Endpoints that speak Chat Completions, each in its own way: what is sent, and what an answer is said to have cost."""

import json
from decimal import Decimal
from typing import Any

import pytest

from potstill.errors import PermanentTeacherError
from potstill.ledger import Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.teacher.outcome import BatchReport
from potstill.teacher.plan import make_plan
from potstill.teacher.rows import ListedRows
from potstill.teacher.session import TeacherSession
from tests.fake_teacher import NOT_FOUND, PRICE, QUICK, Asked, FakeTeacher, Fault, make_teacher, numbered_rows

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


OF_OPENAI = json.dumps(
    {
        "error": {
            "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            "type": "invalid_request_error",
            "param": "max_tokens",
            "code": "unsupported_parameter",
        }
    }
)
OF_MISTRAL = json.dumps(
    {
        "object": "error",
        "message": {
            "detail": [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", "max_completion_tokens"],
                    "msg": "Extra inputs are not permitted",
                    "input": 64,
                }
            ]
        },
        "type": "invalid_request_error",
    }
)
OF_AN_OLD_VERSION = json.dumps(
    {"error": {"message": "Unrecognized request argument supplied: prompt_cache_key", "type": "invalid_request_error"}}
)


def refusing(field: str, status: int, body: str, path: str = "") -> FakeTeacher:
    """An endpoint at this path, whose model refuses a field of requests."""
    refusal = Fault(f"no {field}", status, body.encode())

    def behave(asked: Asked) -> Fault | None:
        return NOT_FOUND if not asked.path.startswith(path) else refusal if field in asked.body else None

    return FakeTeacher(behave)


def answer(teacher: FakeTeacher, ledger: Ledger, **fields: Any) -> BatchReport:
    plan = make_plan(ListedRows(numbered_rows(12)), make_teacher(teacher.url, **fields), None)
    with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
        return session.answer()


@pytest.mark.parametrize("api_version", [None, "2024-10-21"])
def test_a_reasoning_model_of_azure_is_asked_as_the_page_says(ledger: Ledger, api_version: str | None) -> None:
    place = "/openai/deployments/mine" if api_version else "/openai/v1"
    query = f"?api-version={api_version}" if api_version else ""
    with refusing("max_tokens", 400, OF_OPENAI, f"{place}/chat/completions{query}") as teacher:
        report = answer(
            teacher, ledger, provider="openai", base_url=f"{teacher.origin}{place}", api_version=api_version
        )
    assert (report.answered, report.refused) == (12, 0)
    assert {asked.body["max_completion_tokens"] for asked in teacher.requests} == {64}


@pytest.mark.parametrize(
    ("field", "status", "body", "wrong", "right"),
    [
        ("max_tokens", 400, OF_OPENAI, "openai_compatible", "openai"),
        ("max_completion_tokens", 422, OF_MISTRAL, "openai", "openai_compatible"),
    ],
    ids=["gpt-5", "Mistral"],
)
def test_a_model_that_wants_the_other_name_of_a_field_loses_no_prompt(
    ledger: Ledger, field: str, status: int, body: str, wrong: str, right: str
) -> None:
    with refusing(field, status, body) as teacher:
        with pytest.raises(PermanentTeacherError, match=f"set provider to {right}, which sends"):
            answer(teacher, ledger, provider=wrong)
        assert len(teacher.requests) == 1
        assert answer(teacher, ledger, provider=right).answered == 12


def test_a_hint_that_is_refused_from_the_second_request_on_loses_no_prompt(ledger: Ledger) -> None:
    long = {"provider": "openai", "instructions": "Be brief. " * 500, "concurrency": 1}
    with refusing("prompt_cache_key", 400, OF_AN_OLD_VERSION) as teacher:
        with pytest.raises(PermanentTeacherError, match="set prompt_caching to false"):
            answer(teacher, ledger, **long)
        assert [asked.status for asked in teacher.requests] == [200, 400]
        report = answer(teacher, ledger, **long, prompt_caching=False)
    assert (report.found, report.answered, report.refused) == (1, 11, 0)
