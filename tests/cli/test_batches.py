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

    def call(url: str, *flags: str) -> dict[str, Any]:
        price = {name: float(value) for name, value in PRICE.model_dump().items()}
        teacher = {"provider": "openai_compatible", "base_url": url, "model": "fake-1", "price": price}
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
        assert not ended.value.code
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def leave_a_batch(url: str, home: Path) -> None:
    def leave(said: str) -> None:
        if "the provider says" in said:
            raise Left

    teacher = make_teacher(url, mode="batch", batch_poll_seconds=0.02)
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}")
    plan = make_plan(ListedRows(numbered_rows(5)), teacher, None)
    with pytest.raises(Left), TeacherSession(plan, ledger) as session:
        session.answer_in_batches(say=leave)


def test_what_a_run_left_is_shown_and_may_be_cancelled(run: Any, tmp_path: Path) -> None:
    with BatchTeacher() as teacher:
        teacher.polls = 10**6
        assert run(teacher.url) == {"batches": []}
        leave_a_batch(teacher.url, tmp_path / "home")
        (shown,) = run(teacher.url)["batches"]
        assert (shown["num_requests"], shown["said"]) == (5, "in_progress")
        (cancelled,) = run(teacher.url, "--cancel")["batches"]
        assert cancelled["said"] == "cancelling"
        assert [batch.cancel_at is not None for batch in teacher.batches.values()] == [True]


def test_one_that_may_never_have_been_handed_in_is_shown_as_such(run: Any, tmp_path: Path) -> None:
    with BatchTeacher() as teacher:
        ledger = Ledger(f"sqlite:///{tmp_path / 'home' / 'ledger.db'}")
        plan = make_plan(ListedRows(numbered_rows(1)), make_teacher(teacher.url), None)
        begun = AttemptPlan("k", "p", "run", "teach", "openai_compatible", "m", PRICE.output_per_million, plan.rates)
        ledger.begin_batch("token123", "openai_compatible", teacher.url, "run", [(begun, NO_CAPS)])
        (shown,) = run(teacher.url)["batches"]
        assert shown["said"] == "not known to have reached the provider"
        assert teacher.operations() == []
