"""Who has to be asked before a student is released: the operator's variable is a floor that no recipe lowers."""

from datetime import UTC, datetime
from typing import Any

import pytest

from potstill.approval import Approval, needs_word
from potstill.artifacts import ArtifactRef
from potstill.errors import UsageError
from potstill.preflight import check
from potstill.recipe import Recipe
from potstill.run_record import RunRecord

REF = ArtifactRef(kind="Rows", uri="artifacts/Rows/0", digest="0" * 64, num_rows=1)


def recipe(approval: str) -> Recipe:
    sections: dict[str, Any] = {
        "name": "tickets",
        "task": {"kind": "extraction"},
        "curation": {"inputs": ["nowhere.jsonl"]},
        "teacher": {"model": "m"},
        "student": {"base": "x"},
        "gate": {"approval": approval},
    }
    return Recipe.model_validate(sections)


def run(asked: str, **what: Any) -> RunRecord:
    refs = ("prompts", "completions", "dataset", "student", "evaluation", "decision")
    return RunRecord(recipe=recipe(asked), **dict.fromkeys(refs, REF), **what)


@pytest.mark.parametrize(
    ("operator", "asked", "expected"),
    [
        (None, "auto", False),
        (None, "ask", True),
        ("auto", "auto", False),
        ("auto", "ask", True),
        ("ask", "auto", True),
        ("ask", "ask", True),
    ],
)
def test_the_stricter_of_operator_and_recipe_counts(
    monkeypatch: pytest.MonkeyPatch, operator: str | None, asked: str, expected: bool
) -> None:
    monkeypatch.delenv("POTSTILL_APPROVAL", raising=False)
    if operator is not None:
        monkeypatch.setenv("POTSTILL_APPROVAL", operator)
    assert needs_word(recipe(asked)) is expected
    assert needs_word() is (operator == "ask")
    assert run(asked).awaits_approval is expected
    word = Approval(is_approved=True, approver="Jo", reason="read", at=datetime.now(UTC))
    assert not run(asked, approval=word).awaits_approval


@pytest.mark.parametrize("value", ["", "Ask", "yes", "ask "])
def test_an_operators_word_that_is_neither_stops_a_run_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("POTSTILL_APPROVAL", value)
    with pytest.raises(UsageError, match=rf"POTSTILL_APPROVAL is '{value}': set it to auto or ask, or unset it"):
        check(recipe("ask"))
