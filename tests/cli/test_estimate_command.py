"""`potstill estimate` as its user sees it: what it asks and keeps, what it prints, and how it ends."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.artifacts import ArtifactStore
from potstill.cli import main
from potstill.cli.estimate_report import Allowance
from potstill.recipe import Student
from potstill.teacher.estimate import Cost
from tests.batch_teacher import BatchTeacher
from tests.estimating import Ended, record_earlier_run
from tests.fake_teacher import BAD_REQUEST, PRICE, SERVER_ERROR, FakeTeacher, error

ROOT = Path(__file__).parents[2]
PROMPTS, SMOKE = 24, 16
KEY = "sk-canary-3c19a7"
WRONG_KEY = error(401, code="invalid_api_key")
FIRST, FOURTH = "#0008", "#0002"
"""Of the prompts that a smoke asks."""
FOUR = ("--smoke", 4, "--json")
QUICK = (2, 0.001, 0.01, 20)
"""Retries without the pauses."""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with its own state, a log of 24 prompts, and a base of which nothing is loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.delenv("POTSTILL_KEY_HOSTS", raising=False)
    monkeypatch.setattr("potstill.llm.retrying.RetryPolicy.__new__.__defaults__", QUICK)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    with (tmp_path / "log.jsonl").open("w") as log:
        for number in range(PROMPTS):
            messages = [{"role": "user", "content": f"Which one is #{number:04d}?" + " again" * (number % 7)}]
            log.write(json.dumps({"timestamp": number, "workload_id": "w", "request": {"messages": messages}}) + "\n")
    return tmp_path


@pytest.fixture
def teacher() -> Iterator[FakeTeacher]:
    """Each of its answers is a JSON object but one of the smoke's."""
    with FakeTeacher(answer=lambda mark: "no JSON" if mark == FOURTH else json.dumps({"is": mark})) as teacher:
        yield teacher


@pytest.fixture
def potstill(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`potstill("estimate", …)` runs a command in this process; the key is nowhere in what it says."""

    def call(*arguments: object) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert KEY not in out + err
        assert "Traceback" not in out + err
        return Ended(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture
def estimate(place: Path, potstill: Callable[..., Ended]) -> Callable[..., Ended]:
    """`estimate(url, *flags, budget={…}, …)` estimates a recipe whose other sections are given by name."""

    def call(url: str, *flags: object, **sections: dict[str, Any]) -> Ended:
        price = {name: float(value) for name, value in PRICE.model_dump().items()}
        teacher = {"provider": "openai_compatible", "base_url": url, "model": "fake-1", "price": price}
        recipe: dict[str, Any] = {
            "name": "tickets",
            "task": {"kind": "extraction"},
            "curation": {"inputs": ["log.jsonl"], "test_fraction": 0.3},
            "teacher": teacher | {"max_tokens": 20} | sections.pop("teacher", {}),
            "student": {"base": str(place / "base")},
        }
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe | sections))
        return potstill("estimate", "recipe.yaml", *flags)

    return call


Estimate = Callable[..., Ended]


def attempts(place: Path) -> list[tuple[str, str, int]]:
    """Purpose, status and number of the attempts in the ledger."""
    with closing(sqlite3.connect(place / "home/ledger.db")) as ledger:
        return ledger.execute("SELECT purpose, status, count(*) FROM attempts GROUP BY 1, 2 ORDER BY 1, 2").fetchall()


def test_the_smoke_is_paid_and_kept_and_a_second_estimate_asks_nothing(
    teacher: FakeTeacher, estimate: Estimate, place: Path
) -> None:
    first = estimate(teacher.url, "--json")
    billed = float(teacher.billed_usd)
    assert (first.code, len(teacher.requests), first.err) == (0, SMOKE, "")
    smoke = first.json["smoke"]
    assert (smoke["prompts"], smoke["answered"], smoke["asked"]) == (SMOKE, SMOKE, SMOKE)
    assert smoke["cost_usd"] == pytest.approx(billed)
    assert attempts(place) == [("smoke", "answered", SMOKE)]
    second = estimate(teacher.url, "--json")
    assert len(teacher.requests) == SMOKE
    assert second.json == first.json | {"smoke": smoke | {"asked": 0, "cost_usd": 0.0}}


@pytest.mark.flow
def test_an_interrupted_smoke_is_exit_130_and_keeps_what_was_answered(
    teacher: FakeTeacher, estimate: Estimate, place: Path
) -> None:
    estimate(teacher.url, "--smoke", 1)
    teacher.latency = 0.3
    given = [sys.executable, "-m", "potstill.cli", "estimate", "recipe.yaml", "--json"]
    given += ["--set", "teacher.concurrency=2"]
    started = subprocess.Popen(given, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    teacher.wait_for(5)
    started.send_signal(signal.SIGINT)
    told = json.loads(started.communicate(timeout=20)[0])
    assert (started.returncode, told["status"]) == (130, "interrupted")
    answered = told["smoke"]["answered"]
    assert 1 < answered < len(teacher.requests) < SMOKE
    teacher.latency = 0
    assert estimate(teacher.url, "--json").json["smoke"]["asked"] == SMOKE - answered


def test_what_teaches_afterwards_asks_only_the_rest(
    teacher: FakeTeacher, estimate: Estimate, potstill: Callable[..., Ended], place: Path
) -> None:
    expected = estimate(teacher.url, "--json").json["teacher"]["online"]
    asked = teacher.marks()
    (prompts,) = (place / "home/artifacts/PromptSet").iterdir()
    given = ["teach", prompts, "--provider", "openai_compatible", "--base-url", teacher.url, "--model", "fake-1"]
    taught = potstill(*given, "--price", "2.5,10", "--max-tokens", 20, "--out", "out", "--json", "--yes")
    assert (taught.code, taught.json["attempts"], taught.json["answered"]) == (0, PROMPTS - SMOKE, PROMPTS)
    assert not set(asked) & set(teacher.marks()[SMOKE:])
    assert attempts(place) == [("smoke", "answered", SMOKE), ("teach", "answered", PROMPTS - SMOKE)]
    assert expected["low_usd"] <= taught.json["cost_usd"] <= expected["high_usd"] <= expected["bound_usd"]
    nothing = estimate(teacher.url)
    assert len(teacher.requests) == PROMPTS
    assert nothing.row("teacher, online")[1:4] == ["$0.00", "$0.00 – $0.00", "$0.00"]


def test_the_table_holds_both_modes_every_stage_the_interval_and_the_budget_and_json_the_same(
    teacher: FakeTeacher, estimate: Estimate
) -> None:
    caps = {"run_usd": 0.0028, "month_usd": 0.5}
    shown = estimate(teacher.url, budget=caps)
    told = estimate(teacher.url, "--json", budget=caps).json
    assert shown.code == 0
    for mode, name in (("online", "teacher, online (as this recipe asks)"), ("batch", "teacher, batch")):
        cost = told["teacher"][mode]
        what, expected, interval, at_most, how = shown.row(f"teacher, {mode}")
        assert (what, how) == (name, f"price: {told['prices'][mode]}")
        low, high = interval.split(" – ")
        figures = [float(text.removeprefix("$")) for text in (low, expected, high, at_most)]
        wanted = [cost[end] for end in ("low_usd", "expected_usd", "high_usd", "bound_usd")]
        assert figures == pytest.approx(wanted, rel=0.01)
        assert 0 < figures[0] < figures[1] < figures[2] < figures[3]
    assert told["teacher"]["batch"]["expected_usd"] == pytest.approx(told["teacher"]["online"]["expected_usd"] / 2)
    assert told["prices"] == {"online": "given", "batch": "given, batch"}
    assert told["judge"] is None
    assert shown.row("judge")[-1] == "none in this recipe"
    for stage, name in (("base outputs", "base_outputs"), ("training", "training")):
        assert shown.row(stage)[1:] == ["–", "–", "–", told[name]["how"]]
        assert told[name]["how"] == "not known before the first run of this base here"
        assert told[name]["cost_usd"] is None
    assert (told["recipe"], told["mode"], told["status"], shown.line("status")) == ("tickets", "online", "done", "done")
    assert shown.line("smoke").startswith("16 of 16 prompts known; 16 asked now for $0.00")
    assert told["smoke"]["reasons"] == {"not a JSON object": 1}
    assert shown.line("not to be trained on") == "1 of 16 answers: 1 × not a JSON object"
    assert (told["prompts"], told["answers"], told["missing"]) == (PROMPTS, PROMPTS, PROMPTS - SMOKE)
    assert shown.line("still to be asked") == "8 of 24 answers to 24 prompts"
    for kind in ("input", "output"):
        assert shown.line(f"tokens of {kind}").startswith(f"{told['tokens'][kind]['expected']:,.0f} (")
    run = told["budget"]["run_usd"]
    assert run["left_usd"] == pytest.approx(caps["run_usd"] - float(teacher.billed_usd))
    assert run["left_usd"] < told["teacher"]["online"]["expected_usd"]
    assert run["fits"] == {"online": "no", "batch": "yes"}
    assert shown.line("budget run usd").endswith("left of $0.00280: does not fit")
    assert shown.line("budget month usd").endswith("left of $0.500: fits, the upper end of the interval too")


def test_smoke_is_how_many_are_asked_and_a_larger_one_asks_only_what_it_has_more(
    teacher: FakeTeacher, estimate: Estimate
) -> None:
    one = estimate(teacher.url, "--smoke", 1, "--json").json
    assert len(teacher.requests) == 1
    assert one["teacher"]["online"]["low_usd"] is None, "one prompt tells nothing of how they differ"
    assert estimate(teacher.url, "--smoke", 5, "--json").json["smoke"]["asked"] == 4
    everything = estimate(teacher.url, "--smoke", PROMPTS + 60, "--json").json
    assert sorted(teacher.marks()) == [f"#{number:04d}" for number in range(PROMPTS)]
    assert (everything["smoke"]["prompts"], everything["missing"]) == (PROMPTS, 0)
    assert set(everything["teacher"]["online"].values()) == {0}


@pytest.mark.parametrize(
    ("expected", "high", "left", "says"),
    [
        (None, None, 3, "fits, even at most"),
        (None, None, 2, "not known"),
        (1, None, 3, "fits, even at most"),
        (1, None, 2, "the expected cost fits, the cost at most does not"),
        (1, 2, 2, "fits, the upper end of the interval too"),
        (1, 2, 1, "the expected cost fits, the upper end of the interval does not"),
        (1, 2, 0, "does not fit"),
    ],
)
def test_a_budget_is_held_against_what_is_known(expected: int | None, high: int | None, left: int, says: str) -> None:
    usd = [None if value is None else Decimal(value) for value in (expected, high)]
    cost = Cost(expected_usd=usd[0], low_usd=usd[1] and Decimal(0), high_usd=usd[1], bound_usd=Decimal(3))
    assert Allowance(name="run_usd", cap_usd=Decimal(9), left_usd=Decimal(left)).describe(cost) == says


def test_a_recipe_in_batches_is_asked_its_smoke_online_and_without_a_cap_it_is_told_so(estimate: Estimate) -> None:
    with BatchTeacher() as teacher:
        shown = estimate(teacher.url, "--smoke", 2, teacher={"mode": "batch"})
        assert (shown.code, teacher.operations()) == (0, ["ask"] * 2)
    assert shown.row("teacher, batch")[0] == "teacher, batch (as this recipe asks)"
    assert shown.row("teacher, online")[0] == "teacher, online"
    assert shown.line("budget") == "none: nothing stops the spending"


def test_the_machine_s_share_is_what_the_same_base_took_before(
    teacher: FakeTeacher, estimate: Estimate, place: Path
) -> None:
    store = ArtifactStore(place / "home")
    student = Student(base=str(place / "base"))

    record_earlier_run(store, student)
    told = estimate(teacher.url, *FOUR, serving={"usd_per_hour": 36}, training={"epochs": 2}).json
    (prompts,) = (place / "home/artifacts/PromptSet").iterdir()
    splits = json.loads((prompts / "summary.json").read_text())["splits"]
    assert told["training"]["seconds"] == pytest.approx(splits["train"] * 2 * 300 / (100 * 3 / 2))
    assert told["base_outputs"]["seconds"] == pytest.approx(splits["test"] * 6)
    for stage in ("training", "base_outputs"):
        assert told[stage]["cost_usd"] == pytest.approx(told[stage]["seconds"] / 100)
        assert told[stage]["how"].endswith("as in the latest run")


def test_a_key_that_is_refused_is_exit_6_with_the_remedy_and_nothing_counts_as_answered(
    teacher: FakeTeacher, estimate: Estimate, place: Path
) -> None:
    teacher.behaviour = lambda asked: WRONG_KEY
    refused = estimate(teacher.url, *FOUR, teacher={"api_key_env": "TEACHER_KEY"})
    assert refused.code == 6
    assert refused.err.count("\n") == 1
    assert "HTTP 401" in refused.err
    assert "the key is not accepted: check TEACHER_KEY" in refused.err
    assert (refused.json["status"], refused.json["missing"]) == ("not_authorised", PROMPTS)
    assert refused.json["smoke"]["answered"] == 0
    assert refused.json["teacher"]["online"]["expected_usd"] is None
    assert "answered" not in {status for _, status, _ in attempts(place)}
    teacher.behaviour = None
    sent = len(teacher.requests)
    assert estimate(teacher.url, *FOUR, teacher={"api_key_env": "TEACHER_KEY"}).json["smoke"]["answered"] == 4
    assert len(teacher.requests) - sent == 4


def test_a_key_in_a_secret_block_is_exit_6_and_the_remedy_that_it_names_works(
    teacher: FakeTeacher, estimate: Estimate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", "block:teacher-key=127.0.0.1")
    block = {"api_key_block": "teacher-key"}
    refused = estimate(teacher.url, *FOUR, teacher=block)
    assert (refused.code, teacher.requests, refused.err.count("\n")) == (6, [], 1)
    assert refused.err.startswith("error: secret block teacher-key is read by the flow only")
    remedy = refused.err.partition(", with ")[2].strip().replace("NAME", "TEACHER_KEY")
    assert estimate(teacher.url, *FOUR, *remedy.split(), teacher=block).code == 0
    assert {asked.headers["authorization"] for asked in teacher.requests} == {f"Bearer {KEY}"}
    assert estimate(teacher.url, *FOUR, teacher=block).code == 0, "what is answered needs no key"
    assert len(teacher.requests) == 4


def test_a_budget_that_ends_the_smoke_is_exit_5_and_shows_what_is_known(
    teacher: FakeTeacher, estimate: Estimate
) -> None:
    ended = estimate(teacher.url, "--json", budget={"run_usd": 0.0007})
    assert ended.code == 5
    assert ended.err.count("\n") == 1
    assert "raise the cap" in ended.err
    told = ended.json
    assert told["status"] == "budget_reached"
    assert 0 < told["smoke"]["answered"] == len(teacher.requests) < SMOKE
    assert told["missing"] == PROMPTS - len(teacher.requests)
    assert told["budget"]["run_usd"]["fits"]["online"] == "no"


def test_prompts_that_stay_unanswered_are_exit_1_and_the_next_estimate_asks_for_them(
    teacher: FakeTeacher, estimate: Estimate
) -> None:
    teacher.behaviour = lambda asked: SERVER_ERROR if asked.mark == FOURTH else None
    ended = estimate(teacher.url, *FOUR)
    assert (ended.code, ended.json["status"], ended.json["smoke"]["answered"]) == (1, "incomplete", 3)
    assert ended.json["teacher"]["online"]["expected_usd"] > 0
    assert "run the same again to ask only for them" in ended.err
    teacher.behaviour = None
    assert estimate(teacher.url, *FOUR).json["smoke"]["asked"] == 1


def test_a_first_prompt_that_is_refused_is_put_aside_alone(teacher: FakeTeacher, estimate: Estimate) -> None:
    teacher.behaviour = lambda asked: BAD_REQUEST if asked.mark == FIRST else None
    told = estimate(teacher.url, *FOUR)
    assert (told.code, told.err, told.json["smoke"]["answered"]) == (0, "", 4)
    assert told.json["smoke"]["reasons"] == {"refused by the provider": 1, "not a JSON object": 1}
    assert told.json["missing"] == PROMPTS - 4


def test_a_teacher_that_refuses_every_prompt_is_exit_1_after_a_few(teacher: FakeTeacher, estimate: Estimate) -> None:
    teacher.behaviour = lambda asked: BAD_REQUEST
    ended = estimate(teacher.url, *FOUR)
    assert (ended.code, ended.json["status"], len(teacher.requests)) == (1, "failed", 3)
    assert "refuses every prompt" in ended.err


@pytest.mark.parametrize(
    ("flags", "sections", "said"),
    [
        (("--smoke", 0), {}, "--smoke 0: at least one prompt must be asked"),
        ((), {"budget": {"run_eur": 1}}, "budget.run_eur: unknown field"),
        ((), {"curation": {"inputs": ["gone.jsonl"]}}, "gone.jsonl"),
        ((), {"student": {"base": "./gone"}}, "student.base ./gone: no such directory"),
        (("--set", "teacher.price=null"), {}, "no price known for model 'fake-1'"),
    ],
    ids=["smoke of none", "broken recipe", "missing log", "missing base", "unknown price"],
)
def test_what_the_user_can_mend_is_exit_2_in_one_line_and_nothing_is_asked(
    teacher: FakeTeacher, estimate: Estimate, flags: tuple[object, ...], sections: dict[str, Any], said: str
) -> None:
    ended = estimate(teacher.url, *flags, **sections)
    assert (ended.code, ended.out, teacher.requests) == (2, "", [])
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert said in ended.err


def test_a_recipe_that_is_not_there_is_exit_2_and_the_nearest_name_is_told(
    potstill: Callable[..., Ended], place: Path
) -> None:
    (place / "tickets.yaml").write_text("")
    ended = potstill("estimate", "ticket.yaml")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: ticket.yaml: no such recipe; did you mean tickets.yaml?\n"
