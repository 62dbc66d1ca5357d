"""The question of `potstill teach` before a large bill: where somebody sits at a terminal, and nowhere else."""

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from potstill.cli import main
from tests.fake_teacher import FakeTeacher

PROMPTS = 20
PRICE = "2.5,1000"
"""An answer of 1,024 tokens costs 1.02 USD."""


class Seen(NamedTuple):
    code: int
    out: str
    err: str


Teach = Callable[..., Seen]


@pytest.fixture
def teacher() -> Iterator[FakeTeacher]:
    with FakeTeacher() as teacher:
        yield teacher


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: FakeTeacher) -> list[str]:
    """The command and what it needs."""
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))
    rows = (
        {"id": f"row-{n}", "messages": [{"role": "user", "content": f"Which is #{n:04d}?"}]} for n in range(PROMPTS)
    )
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = ["--out", str(tmp_path / "out"), "--base-url", teacher.url, "--provider", "openai_compatible"]
    return ["teach", str(prompts), *where, "--model", "fake-1", "--json"]


@pytest.fixture
def teach(given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Teach:
    """`teach(*flags)` answers *no* at a terminal; with `at_a_terminal=False` there is none."""

    def run(*flags: Any, at_a_terminal: bool = True) -> Seen:
        monkeypatch.setattr("potstill.cli.teaching.is_attended", lambda: at_a_terminal)
        monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
        with pytest.raises(SystemExit) as ended:
            main([*given, *([] if "--price" in flags else ["--price", PRICE]), *map(str, flags)])
        printed = capsys.readouterr()
        return Seen(int(ended.value.code or 0), printed.out, printed.err)

    return run


def test_a_bill_that_may_be_large_is_asked_about_and_any_other_answer_than_yes_asks_nothing(
    teach: Teach, teacher: FakeTeacher
) -> None:
    seen = teach()
    assert (seen.code, seen.out, teacher.requests) == (2, "", [])
    assert "20 answers are missing and may cost up to $20.48. Go on? [y/N] " in seen.err
    assert "not confirmed: nothing was asked" in seen.err


@pytest.mark.parametrize(
    ("flags", "most"),
    [
        (("--quality-retries", 1), "$61.45"),
        (("--samples", 2), "$40.97"),
        (("--budget-usd", 15), "$20.48; the budget admits $15.00"),
        (("--mode", "batch"), "$10.24"),
        (("--mode", "batch", "--stragglers-online"), "$20.48"),
    ],
)
def test_the_question_counts_what_the_flags_may_cost(teach: Teach, flags: tuple[object, ...], most: str) -> None:
    assert f"may cost up to {most}. Go on?" in teach(*flags).err


def test_what_a_provider_adds_for_tools_counts_too(teach: Teach, given: list[str]) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    line = {"id": "row-0", "messages": [{"role": "user", "content": "Look."}], "tools": tools}
    Path(given[1]).write_text(json.dumps(line) + "\n")
    assert "Go on?" in teach("--price", "20000,1").err, "its bytes alone are less than 10 USD"


@pytest.mark.parametrize("flags", [("--budget-usd", "0.5"), ("--yes",)])
def test_what_the_budget_or_the_user_has_settled_is_not_asked(teach: Teach, flags: tuple[object, ...]) -> None:
    assert "Go on?" not in teach(*flags).err


def test_answers_that_the_ledger_holds_are_no_bill(teach: Teach, teacher: FakeTeacher) -> None:
    assert teach("--yes").code == 0
    again = teach()
    assert (again.code, json.loads(again.out)["attempts"], len(teacher.requests)) == (0, 0, PROMPTS)


def test_without_a_terminal_nothing_is_computed(teach: Teach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "potstill.cli.confirming", None)  # importing it fails
    assert teach(at_a_terminal=False).code == 0


def test_where_errors_go_to_a_file_nobody_is_asked(given: list[str], teacher: FakeTeacher, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with (tmp_path / "said").open("w") as said:
        command = [sys.executable, "-m", "potstill.cli", *given, "--price", PRICE]
        ended = subprocess.run(command, stdin=theirs, stdout=subprocess.PIPE, stderr=said, timeout=60, check=False)
    os.close(theirs)
    os.close(ours)
    assert (ended.returncode, len(teacher.requests)) == (0, PROMPTS)
