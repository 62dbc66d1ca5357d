"""`potstill batches`: what a run that has ended left at the provider."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.cli import main
from potstill.ledger import AttemptPlan, Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.teacher.plan import make_plan
from potstill.teacher.rows import ListedRows
from potstill.teacher.session import TeacherSession
from tests.batch_teacher import BatchTeacher
from tests.fake_teacher import PRICE, make_teacher, numbered_rows


class Left(BaseException):
    """The run ends while its batch goes on."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))

    def call(url: str, *flags: str, code: int = 0, **fields: Any) -> Any:
        price = {name: float(value) for name, value in PRICE.model_dump().items()}
        teacher = {"provider": "openai_compatible", "base_url": url, "model": "fake-1", "price": price, **fields}
        recipe = {
            "name": "left",
            "task": {"kind": "extraction"},
            "curation": {"inputs": ["log.jsonl"]},
            "teacher": teacher,
            "student": {"base": "nothing"},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        with pytest.raises(SystemExit) as ended:
            main(["batches", str(tmp_path / "recipe.yaml"), "--json", *flags])
        assert ended.value.code == code
        printed = capsys.readouterr()
        return printed.err if code else json.loads(printed.out.splitlines()[-1])

    return call


def leave_a_batch(url: str, home: Path, recipe: str | None = "left", first: int = 0) -> None:
    def leave(said: str) -> None:
        if "the provider says" in said:
            raise Left

    teacher = make_teacher(url, mode="batch", batch_poll_seconds=0.02)
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}")
    plan = make_plan(ListedRows(numbered_rows(5, first)), teacher, None, recipe)
    with pytest.raises(Left), TeacherSession(plan, ledger) as session:
        session.answer_in_batches(say=leave)


def test_what_a_run_left_is_shown_and_may_be_cancelled(run: Any, tmp_path: Path) -> None:
    with BatchTeacher() as teacher:
        teacher.polls = 10**6
        assert run(teacher.url) == {"batches": [], "left_out": 0}
        leave_a_batch(teacher.url, tmp_path / "home")
        (shown,) = run(teacher.url)["batches"]
        assert (shown["num_requests"], shown["said"]) == (5, "in_progress")
        assert (shown["recipe"], shown["model"]) == ("left", "fake-1")
        (cancelled,) = run(teacher.url, "--cancel")["batches"]
        assert cancelled["said"] == "cancelling"
        assert [batch.cancel_at is not None for batch in teacher.batches.values()] == [True]


def test_those_of_other_recipes_at_the_same_address_are_left_alone(run: Any, tmp_path: Path) -> None:
    with BatchTeacher() as teacher:
        teacher.polls = 10**6
        for number, name in enumerate(["left", "left-over", None]):
            leave_a_batch(teacher.url, tmp_path / "home", name, first=100 * number)
        found = run(teacher.url, "--cancel")
        assert [batch["recipe"] for batch in found["batches"]] == ["left"]
        assert found["left_out"] == 2
        assert [batch.cancel_at is not None for batch in teacher.batches.values()] == [True, False, False]
        every = run(teacher.url, "--cancel", "--all")
        assert [batch["recipe"] for batch in every["batches"]] == ["left", "left-over", None]
        assert all(batch.cancel_at is not None for batch in teacher.batches.values())


def test_a_key_in_a_secret_block_has_to_be_named_in_a_variable_here(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", "block:teacher-key=127.0.0.1")
    monkeypatch.setenv("MY_KEY", "a-key-of-mine-for-tests")
    with BatchTeacher() as teacher:
        teacher.polls = 10**6
        leave_a_batch(teacher.url, tmp_path / "home")
        said = run(teacher.url, code=6, api_key_block="teacher-key")
        assert "--set teacher.api_key_block=null --set teacher.api_key_env=NAME" in said
        remedy = ("--set", "teacher.api_key_block=null", "--set", "teacher.api_key_env=MY_KEY")
        (shown,) = run(teacher.url, *remedy, api_key_block="teacher-key")["batches"]
        assert shown["said"] == "in_progress"


def test_one_that_may_never_have_been_handed_in_is_shown_as_such(run: Any, tmp_path: Path) -> None:
    with BatchTeacher() as teacher:
        ledger = Ledger(f"sqlite:///{tmp_path / 'home' / 'ledger.db'}")
        plan = make_plan(ListedRows(numbered_rows(1)), make_teacher(teacher.url), None)
        begun = AttemptPlan(
            "k",
            "p",
            "run",
            "teach",
            "openai_compatible",
            "m",
            PRICE.output_per_million,
            plan.rates,
            "month/left/2026-11",
        )
        ledger.begin_batch("token123", "openai_compatible", teacher.url, "run", [(begun, NO_CAPS)])
        (shown,) = run(teacher.url)["batches"]
        assert shown["said"] == "not known to have reached the provider"
        assert teacher.operations() == []
