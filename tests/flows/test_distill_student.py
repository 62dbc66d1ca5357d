"""The parent flow, whole: a tiny student is taught, judged and released; what is done is not done again."""

import html
import json
import re
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType

from flows.distill_student import distill_student
from flows.redistill import redistill
from potstill.approval import Approval
from potstill.artifacts import StageKey, open_store
from potstill.cli import main
from potstill.evaluation.report import read_arms
from potstill.gate_stage import read_decision
from potstill.promotions import came_true, promotions
from potstill.recipe import Compute, Dpo, Gate, Recipe, Student
from potstill.release import aliases, publish, releases, rollback
from potstill.report.run_report import RunSummary
from potstill.run_record import find_record
from potstill.student.base import resolve_base
from potstill.teacher.collect import read_summary
from potstill.training.launch import read_spec, read_status
from tasks.events import say_released
from tests.tiny_student import build_base

pytestmark = pytest.mark.flow

ATTESTED = "the replay teacher is our own"


class Distilled(NamedTuple):
    recipe: Recipe
    home: Path
    teacher: str
    state: State[Any]

    def requests(self) -> int:
        return httpx.get(f"{self.teacher}/replay/stats").json()["requests"]

    def report(self) -> str:
        return Path(self.state.result().report).read_text()


def run(recipe: Recipe) -> State[Any]:
    return distill_student(recipe, return_state=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def use_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_HOME", str(home))


@pytest.fixture(scope="module")
def distilled(
    home: Path,
    tmp_path_factory: pytest.TempPathFactory,
    write_tickets: Callable[..., Any],
    replay_teacher: Callable[..., Any],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> Any:
    tickets = write_tickets(tmp_path_factory.mktemp("log"), 400)
    with pytest.MonkeyPatch.context() as patch, replay_teacher(tickets.answers) as teacher:
        patch.setenv("POTSTILL_HOME", str(home))
        recipe = Recipe.model_validate(tiny_recipe(tickets.log, teacher, teacher={"attest": ATTESTED}))
        yield Distilled(recipe, home, teacher, run(recipe))


def test_a_run_ends_with_a_released_student(distilled: Distilled) -> None:
    assert distilled.state.name == "Completed"
    summary = distilled.state.result()
    assert isinstance(summary, RunSummary)
    assert summary.verdict == "passed"
    assert summary.arms["base"].score == 0
    assert (summary.arms["candidate"].score or 0) > 0.95
    assert distilled.requests() == 400
    assert aliases(distilled.home, "tickets").champion == summary.release
    assert "tickets" in Path(summary.report).read_text()


def test_what_was_attested_stands_in_every_manifest_downstream(distilled: Distilled) -> None:
    record, store = find_record(distilled.home, "tickets"), open_store()
    assert store.manifest(record.prompts).teacher_terms == ()
    downstream = (record.completions, record.dataset, record.student, record.evaluation, record.decision)
    arms = read_arms(store.path(record.evaluation))
    stated = [store.manifest(ref).teacher_terms for ref in (*downstream, arms["candidate"])]
    stated.append(releases(distilled.home, "tickets")[0].teacher_terms)
    assert [terms.attested for [terms] in stated] == [ATTESTED] * 7
    assert store.manifest(arms["base"]).teacher_terms == (), "the base has learned from no teacher"
    assert f'replay at 127.0.0.1: allowed; attested: "{ATTESTED}"' in html.unescape(distilled.report())


def test_the_same_run_again_does_nothing_again(distilled: Distilled) -> None:
    before = sorted(path for path in (distilled.home / "artifacts").rglob("manifest.json"))
    made = {path: path.stat().st_mtime_ns for path in before}
    state = run(distilled.recipe)
    assert state.name == "Completed"
    assert distilled.requests() == 400
    assert {path: path.stat().st_mtime_ns for path in before} == made
    assert len(releases(distilled.home, "tickets")) == 1


def test_a_night_without_news_since_that_run_is_skipped_with_its_reason(distilled: Distilled) -> None:
    state = redistill(distilled.recipe, return_state=True)
    champion = aliases(distilled.home, "tickets").champion
    assert (state.type, state.name) == (StateType.COMPLETED, "Skipped")
    said = re.fullmatch(
        r"0 new prompts of (\d+) since the run of [\d: -]+ UTC, min_new_prompts is 100; (\w+) serves",
        state.message or "",
    )
    assert said, state.message
    assert (said[1], said[2]) == ("400", champion)
    assert distilled.requests() == 400


def test_a_run_by_hand_that_awaits_approval_is_released_by_the_command(
    distilled: Distilled, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = distilled.recipe.model_copy(update={"name": "asked", "gate": Gate(retention_floor=0.9, approval="ask")})
    state = run(recipe)
    assert state.name == "AwaitsApproval"
    seen = find_record(distilled.home, "asked").student.digest[:12]
    assert f"or `potstill approve asked --student {seen}`)" in (state.message or "")
    assert aliases(distilled.home, "asked").champion is None
    assert approve(capsys, "asked", "--student", "0" * 12).startswith(
        "error: approve asked: the student of its latest run"
    )
    assert aliases(distilled.home, "asked").champion is None
    said = json.loads(approve(capsys, "asked", "--student", seen, "--json", code=0))
    assert aliases(distilled.home, "asked").champion == said["release"]
    assert "is released, approved by Jo Bloggs" in said["headline"]
    assert "approved by Jo Bloggs on" in html.unescape(Path(said["report"]).read_text())
    [promotion] = promotions(distilled.home / "releases" / "asked")
    assert promotion.approval is not None
    assert promotion.approval.reason == "read 20 answers"
    assert "its latest run awaits no approval: Passed:" in approve(capsys, "asked")


def approve(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["approve", *arguments, "--by", "Jo Bloggs", "--reason", "read 20 answers"])
    assert ended.value.code == code
    said = capsys.readouterr()
    return said.err if code else said.out


def test_a_word_on_a_student_that_serves_already_is_kept_in_its_lineage(
    distilled: Distilled, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(distilled.recipe.model_copy(update={"name": "served"})).name == "Completed"
    [first] = promotions(distilled.home / "releases" / "served")
    monkeypatch.setenv("POTSTILL_APPROVAL", "ask")
    assert "`potstill rollback served` takes it out" in approve(capsys, "served", "--reject")
    approve(capsys, "served", code=0)
    moved, told = promotions(distilled.home / "releases" / "served")
    assert moved == first
    assert (told.what, told.approval and told.approval.approver) == ("approval", "Jo Bloggs")
    assert came_true([moved, told], told.to_version) == [moved, told]


def test_a_word_by_hand_against_a_champion_that_came_meanwhile_is_refused(
    distilled: Distilled, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_APPROVAL", "ask")
    assert run(distilled.recipe.model_copy(update={"name": "overtaken"})).name == "AwaitsApproval"
    store, record = open_store(), find_record(distilled.home, "overtaken")

    def other_weights(directory: Path) -> int:
        shutil.copytree(store.path(record.student) / "adapter", directory / "adapter")
        (directory / "adapter" / "more.json").write_text("{}")
        return 1

    meanwhile = publish(
        distilled.home,
        "overtaken",
        store.path(store.build(StageKey("train", 1, "0" * 64), "StudentAdapter", other_weights)),
        base=resolve_base(record.recipe.student, store),
        decision=read_decision(store.path(record.decision)).model_copy(update={"candidate": None}),
        golden=(),
        max_tokens=8,
        approval=Approval(is_approved=True, approver="Ann", reason="hers", at=datetime.now(UTC)),
    )
    said = approve(capsys, "overtaken")
    assert f"was compared with no champion, and now overtaken@{meanwhile.version} (adapter " in said
    assert aliases(distilled.home, "overtaken").champion == meanwhile.version
    assert find_record(distilled.home, "overtaken").awaits_approval, "the word was not taken"


def test_a_release_is_told_only_while_its_version_serves(distilled: Distilled) -> None:
    store, record = open_store(), find_record(distilled.home, "tickets")
    mine = aliases(distilled.home, "tickets").champion
    assert mine is not None
    rival = publish(
        distilled.home,
        "tickets",
        store.path(record.student),
        base=resolve_base(record.recipe.student, store),
        decision=read_decision(store.path(record.decision)),
        golden=(),
        max_tokens=9,
    )
    assert rival.alias == "champion"
    told = num_told(mine)
    state = run(distilled.recipe)
    assert state.name == "Completed"
    assert f"tickets@{mine} does not serve: it was taken out of service after this decision" in (state.message or "")
    assert (state.message or "").endswith(f"; tickets@{rival.version} serves")
    assert state.result().is_served is False
    say_released("marker", "0" * 12, "passed", "what was said before has arrived")
    wait_for(lambda: num_told("0" * 12) > 0)
    assert num_told(mine) == told
    rollback(distilled.home, "tickets")
    state = run(distilled.recipe)
    assert f"tickets@{mine} is released" in (state.message or "")
    wait_for(lambda: num_told(mine) > told)


def num_told(version: str) -> int:
    """How often Prefect has been told that a version was released."""
    wanted = {"filter": {"event": {"name": ["potstill.released"]}}, "limit": 50}
    with get_client(sync_client=True) as client:
        found = client._client.post("/events/filter", json=wanted).json()["events"]
    return sum(event["payload"]["version"] == version for event in found)


def wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end, "not within 30 s"
        time.sleep(0.2)


def test_a_pool_that_is_not_deployed_is_said_before_anything_is_paid_for(distilled: Distilled) -> None:
    teacher = distilled.recipe.teacher.model_copy(update={"max_tokens": 17})
    recipe = distilled.recipe.model_copy(update={"compute": Compute(train="pool"), "teacher": teacher})
    state = run(recipe)
    assert state.name == "Failed"
    assert "this Prefect server has no deployment train-student/gpu: deploy it" in (state.message or "")
    assert distilled.requests() == 400


def test_a_deleted_artefact_and_only_what_hangs_on_it_is_made_again(distilled: Distilled) -> None:
    store = open_store()
    record = find_record(distilled.home, "tickets")
    training = store.manifest(record.student)
    shutil.rmtree(store.path(record.evaluation))
    state = run(distilled.recipe)
    assert state.name == "Completed"
    again = find_record(distilled.home, "tickets")
    assert again.evaluation == record.evaluation, "the same bytes are the same artefact"
    assert store.path(again.evaluation).is_dir()
    assert store.manifest(again.student) == training, "the student was not trained again"
    assert distilled.requests() == 400


def test_a_damaged_artefact_is_noticed_and_made_again(distilled: Distilled) -> None:
    store = open_store()
    record = find_record(distilled.home, "tickets")
    path = store.path(record.dataset) / "examples.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    assert run(distilled.recipe).name == "Completed"
    again = find_record(distilled.home, "tickets")
    assert again.dataset == record.dataset
    assert again.student == record.student


def test_an_answer_that_the_ledger_lost_is_asked_again_and_no_other(distilled: Distilled) -> None:
    store = open_store()
    record = find_record(distilled.home, "tickets")
    asked = distilled.requests()
    with closing(sqlite3.connect(distilled.home / "ledger.db")) as ledger, ledger:
        ledger.execute("DELETE FROM answers WHERE answer_key = (SELECT min(answer_key) FROM answers)")
    assert run(distilled.recipe).name == "Completed"
    assert distilled.requests() == asked, "the completions hold it still"
    shutil.rmtree(store.path(record.completions))
    assert run(distilled.recipe).name == "Completed"
    assert distilled.requests() == asked + 1
    again = find_record(distilled.home, "tickets")
    assert read_summary(store.path(again.completions)).answered == 400
    assert again.student == record.student


def test_the_command_line_finds_what_the_flow_has_paid_for(distilled: Distilled, tmp_path: Path, capsys: Any) -> None:
    import json

    from potstill.cli import main

    store = open_store()
    asked = distilled.requests()
    prompts = store.path(find_record(distilled.home, "tickets").prompts)
    teacher = ["--provider", "openai_compatible", "--base-url", distilled.teacher, "--model", "replay"]
    flags = [*teacher, "--price", "1,2", "--max-tokens", "16", "--out", str(tmp_path / "out"), "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["teach", str(prompts), *flags])
    assert ended.value.code == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["attempts"], summary["answered"]) == (0, 400)
    assert summary["total_cost_usd"] > 0
    assert distilled.requests() == asked


def test_a_gate_with_too_few_prompts_is_undecided_and_releases_nothing(distilled: Distilled) -> None:
    few = distilled.recipe.model_copy(
        update={"name": "few", "gate": distilled.recipe.gate.model_copy(update={"min_prompts": 5000})}
    )
    state = run(few)
    assert (state.type.value, state.name) == ("COMPLETED", "GateUndecided")
    assert releases(distilled.home, "few") == []


def test_a_student_that_learned_nothing_is_rejected_and_releases_nothing(distilled: Distilled) -> None:
    untaught = distilled.recipe.training.model_copy(update={"epochs": 0.1, "learning_rate": 1e-9})
    recipe = distilled.recipe.model_copy(update={"name": "untaught", "training": untaught})
    state = run(recipe)
    assert (state.type.value, state.name) == ("COMPLETED", "GateRejected")
    assert releases(distilled.home, "untaught") == []
    assert find_record(distilled.home, "untaught").release is None


def test_the_champion_answers_on_its_own_base_when_the_recipe_names_another(
    distilled: Distilled, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = ["refund", "crash", *distilled.recipe.task.labels, "please", "help", "the", "my", "is", "and", "why"]
    wider = build_base(tmp_path_factory.mktemp("wider"), words * 20, hidden=160)
    champion = aliases(distilled.home, "tickets").champion
    state = run(distilled.recipe.model_copy(update={"student": Student(base=str(wider))}))
    assert state.name == "Completed"
    summary = state.result()
    assert (summary.arms["champion"].score or 0) > 0.95
    now = aliases(distilled.home, "tickets")
    assert (now.champion, now.previous) == (summary.release, champion)


def test_a_dpo_rung_goes_on_from_the_sft_student(distilled: Distilled) -> None:
    dpo = Dpo(max_pairs=24, learning_rate=1e-5)
    training = distilled.recipe.training.model_copy(update={"dpo": dpo})
    state = run(distilled.recipe.model_copy(update={"name": "polished", "training": training}))
    assert state.name == "Completed"
    assert (state.result().arms["candidate"].score or 0) > 0.95
    store = open_store()
    student = find_record(distilled.home, "polished").student
    assert read_spec(store.path(student)).method == "dpo"
    assert read_status(store.path(student)).examples == 24


def test_an_empty_log_fails_with_its_reason(distilled: Distilled, tmp_path: Path) -> None:
    log = tmp_path / "empty.jsonl"
    log.touch()
    curation = distilled.recipe.curation.model_copy(update={"inputs": (str(log),)})
    state = run(distilled.recipe.model_copy(update={"curation": curation}))
    assert state.is_failed()
    assert "no line in it" in str(state.result(raise_on_failure=False))
