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
from potstill.teacher.watching import LOOKS
from tests.batch_teacher import BatchTeacher, refuse
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


def leave_a_batch(url: str, home: Path, recipe: str | None = "left", first: int = 0, **fields: Any) -> None:
    def leave(said: str) -> None:
        if "the provider says" in said:
            raise Left

    teacher = make_teacher(url, mode="batch", batch_poll_seconds=0.02, **fields)
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


@pytest.mark.parametrize("is_left", [True, False])
@pytest.mark.parametrize("provider", ["openai_compatible", "anthropic"])
def test_one_that_has_ended_is_given_up_only_where_its_results_are_gone(
    run: Any, tmp_path: Path, provider: str, is_left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BatchTeacher() as teacher:
        teacher.polls = 10**6
        leave_a_batch(teacher.url, tmp_path / "home", provider=provider)
        monkeypatch.setattr("potstill.owner.Owner.is_dead", lambda owner: True)
        for batch in teacher.batches.values():
            teacher.finish(batch)
        teacher.results_are_gone = not is_left
        run(teacher.url, provider=provider)
        ledger = Ledger(f"sqlite:///{tmp_path / 'home' / 'ledger.db'}")
        (row,) = ledger.open_batches(provider, teacher.url)
        (shown,) = run(teacher.url, "--cancel", provider=provider)["batches"]
        assert ("counts at its upper bound" in shown["said"]) == (not is_left)
        assert len(ledger.open_batches(provider, teacher.url)) == is_left
        account = ledger.account(row.run)
        assert (account.spent_usd == 0, account.reserved_usd == 0) == (is_left, not is_left)


class NeverAdopts(Ledger):
    """The run is interrupted before the id of its batch is stored."""

    def adopt_batch(self, token: str, batch_id: str) -> None:
        raise Left


@pytest.fixture
def dead_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever handed a batch in has ended."""
    monkeypatch.setattr("potstill.owner.Owner.is_dead", lambda owner: True)


def lose_an_id(teacher: BatchTeacher, home: Path, provider: str = "openai_compatible") -> Ledger:
    url = f"sqlite:///{home / 'ledger.db'}"
    fields = make_teacher(teacher.url, provider=provider, mode="batch", batch_poll_seconds=0.02)
    plan = make_plan(ListedRows(numbered_rows(5)), fields, None, "left")
    with pytest.raises(Left), TeacherSession(plan, NeverAdopts(url)) as session:
        session.answer_in_batches()
    return Ledger(url)


@pytest.fixture
def never_there(tmp_path: Path) -> Any:
    """Begins a batch and does not hand it in."""

    def begin(url: str) -> Ledger:
        ledger = Ledger(f"sqlite:///{tmp_path / 'home' / 'ledger.db'}")
        rates = make_plan(ListedRows(numbered_rows(1)), make_teacher(url), None).rates
        bound = PRICE.output_per_million
        begun = AttemptPlan("k", "p", "run", "teach", "openai_compatible", "m", bound, rates, "month/left/2026-11")
        ledger.begin_batch("token123", "openai_compatible", url, "run", [(begun, NO_CAPS)])
        return ledger

    return begin


@pytest.mark.usefixtures("dead_owners")
@pytest.mark.parametrize("flags", [(), ("--cancel",)])
def test_one_whose_id_was_never_stored_is_found_by_its_token(run: Any, tmp_path: Path, flags: tuple[str, ...]) -> None:
    with BatchTeacher() as teacher:
        teacher.polls = 10**6
        ledger = lose_an_id(teacher, tmp_path / "home")
        (found,) = run(teacher.url, *flags)["batches"]
        (batch,) = teacher.batches.values()
        assert found["batch_id"] == batch.id
        assert found["said"] == ("cancelling" if flags else "in_progress")
        assert (batch.cancel_at is not None) == bool(flags)
        (row,) = ledger.open_batches("openai_compatible", teacher.url)
        assert (row.batch_id, row.status) == (batch.id, "running")


@pytest.mark.usefixtures("dead_owners")
def test_one_that_may_be_another_s_is_named_and_not_stopped(run: Any, tmp_path: Path) -> None:
    with BatchTeacher() as teacher:
        teacher.polls = 10**6
        ledger = lose_an_id(teacher, tmp_path / "home", "anthropic")
        (found,) = run(teacher.url, "--cancel", provider="anthropic")["batches"]
        (batch,) = teacher.batches.values()
        assert f"perhaps {batch.id}" in found["said"]
        assert (found["batch_id"], batch.cancel_at) == (None, None)
        teacher.finish(batch)
        (found,) = run(teacher.url, "--cancel", provider="anthropic")["batches"]
        assert (found["batch_id"], found["said"]) == (batch.id, "ended")
        assert [row.batch_id for row in ledger.open_batches("anthropic", teacher.url)] == [batch.id]


@pytest.mark.usefixtures("dead_owners")
def test_one_that_the_provider_does_not_know_is_shown_and_may_be_given_up(
    run: Any, never_there: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.cli.batches.LAG_SECONDS", 0.0)
    with BatchTeacher() as teacher:
        ledger = never_there(teacher.url)
        (shown,) = run(teacher.url)["batches"]
        assert shown["said"] == "not found (the provider does not know it): --cancel gives it up"
        assert teacher.operations() == ["list"]
        (shown,) = run(teacher.url, "--cancel")["batches"]
        assert shown["said"] == "given up, nothing was billed (the provider does not know it)"
        assert teacher.operations().count("list") == 1 + LOOKS
        assert ledger.account("run").committed_usd == 0
        assert run(teacher.url)["batches"] == []


@pytest.mark.usefixtures("dead_owners")
def test_an_endpoint_without_batches_has_none_to_wait_for(run: Any, never_there: Any) -> None:
    with BatchTeacher() as teacher:
        ledger = never_there(teacher.url)
        teacher.fail_next("list", refuse(404), refuse(404))
        (shown,) = run(teacher.url)["batches"]
        assert "has no batches" in shown["said"]
        (shown,) = run(teacher.url, "--cancel")["batches"]
        assert shown["said"].startswith("given up")
        assert ledger.open_batches("openai_compatible", teacher.url) == []


def test_one_that_a_run_hands_in_right_now_is_not_given_up(
    run: Any, never_there: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.cli.batches.LAG_SECONDS", 0.0)
    with BatchTeacher() as teacher:
        ledger = never_there(teacher.url)
        (shown,) = run(teacher.url, "--cancel")["batches"]
        assert "end that run, then cancel again" in shown["said"]
        assert len(ledger.open_batches("openai_compatible", teacher.url)) == 1
