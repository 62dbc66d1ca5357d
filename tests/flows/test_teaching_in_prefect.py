"""What Prefect's UI shows of the teacher stage while it runs: the spending, and each batch with its cost and retries."""

import json
import re
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import Artifact, State, TaskRun
from prefect.runtime import flow_run

from potstill.artifacts import ArtifactRef, open_store
from potstill.curation.curate import curate
from potstill.ledger import Ledger
from potstill.recipe import Recipe
from potstill.teacher.plan import make_plan
from potstill.teacher.rows import StoredRows
from potstill.teacher.sharing import stop_sessions
from tasks.teaching import teach
from tests.fake_teacher import PRICE, SERVER_ERROR, UNAUTHORISED, FakeTeacher, error
from tests.in_flight import InFlight
from tests.postgres import PostgresServer

pytestmark = pytest.mark.flow

PROMPTS, BATCHES = 60, 3
BAR = re.compile(r"(\d+) of (\d+) answers, ([\d.]+) USD in (\d+) attempts")
LONGER_THAN_A_RUN_WAITS = error(429, retry_after="400")
RECORDED_SECONDS = 60
"""The server records task runs some seconds after they end."""


@flow(persist_result=True)
def teach_only(recipe: Recipe, prompts: ArtifactRef) -> str:
    """The teacher stage of the parent flow; returns the run's id."""
    teach(recipe, prompts)
    return str(flow_run.id)


class Stage(NamedTuple):
    teacher: FakeTeacher
    recipe: Recipe
    prompts: ArtifactRef

    def run(self) -> FlowRunFilter:
        """Run it; returns what names the run."""
        return FlowRunFilter(id=FlowRunFilterId(any_=[UUID(teach_only(self.recipe, self.prompts))]))


@pytest.fixture
def stage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_tickets: Callable[..., Any],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> Iterator[Stage]:
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tasks.spending.EVERY_SECONDS", 0.7)
    monkeypatch.setattr("potstill.teacher.session.LOOK_SECONDS", 0.5)
    tickets = write_tickets(tmp_path / "log", PROMPTS)
    with FakeTeacher(latency=0.3, answer=lambda _: "billing") as teacher:
        settings = {"batch_size": PROMPTS // BATCHES, "concurrency": 4, "price": PRICE.model_dump()}
        recipe = Recipe.model_validate(tiny_recipe(tickets.log, teacher.url, teacher=settings))
        yield Stage(teacher, recipe, curate(recipe.curation, recipe.task.kind, open_store()))


def reports(run: FlowRunFilter) -> list[Artifact]:
    """The UI reports of a run, oldest first."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(flow_run_filter=run)
    return sorted(found, key=lambda report: str(report.created))


def logged(run: FlowRunFilter) -> list[str]:
    with get_client(sync_client=True) as client:
        return [
            line.message
            for line in client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=run.id and run.id.any_)))
        ]


def batches(run: FlowRunFilter) -> dict[str, TaskRun]:
    """The batches of a run by name, once the server has recorded that all have ended."""
    deadline = time.monotonic() + RECORDED_SECONDS
    while True:
        with get_client(sync_client=True) as client:
            found = {task.name: task for task in client.read_task_runs(flow_run_filter=run) if "batch" in task.name}
        if len(found) == BATCHES and all(task.state_name in {"Completed", "Cached"} for task in found.values()):
            return found
        assert time.monotonic() < deadline, {name: task.state_name for name, task in found.items()}
        time.sleep(0.5)


def test_the_table_of_spend_grows_and_each_batch_has_a_bar_with_its_cost(stage: Stage) -> None:
    run = stage.run()
    shown = reports(run)
    tables = [json.loads(str(report.data)) for report in shown if report.key == "spend"]
    attempts = [sum(row["attempts"] for row in table) for table in tables]
    assert attempts == sorted(attempts)
    assert len(set(attempts)) >= 3, "it grows while the run goes on"
    assert attempts[-1] == PROMPTS
    assert sum(Decimal(row["cost, USD"]) for row in tables[-1]) == stage.teacher.billed_usd

    ended = batches(run)
    bars = {report.task_run_id: report for report in shown if report.type == "progress"}
    assert bars.keys() == {task.id for task in ended.values()}
    told = [match.groups() for bar in bars.values() if (match := BAR.fullmatch(str(bar.description)))]
    assert [(done, wanted, tries) for done, wanted, _, tries in told] == [("20", "20", "20")] * BATCHES
    assert {float(str(bar.data)) for bar in bars.values()} == {100.0}
    assert abs(sum(Decimal(cost) for _, _, cost, _ in told) - stage.teacher.billed_usd) < Decimal("0.0002")


@pytest.mark.parametrize("why", ["budget", "key"])
def test_a_run_that_fails_at_once_still_shows_what_it_has_spent(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr("tasks.spending.EVERY_SECONDS", 600.0)
    stage.teacher.latency = 0.0
    stage.teacher.behaviour = (lambda _: UNAUTHORISED) if why == "key" else None
    budget = stage.recipe.budget.model_copy(update={"run_usd": Decimal("0.001") if why == "budget" else None})
    state: State[str] = teach_only(stage.recipe.model_copy(update={"budget": budget}), stage.prompts, return_state=True)
    assert state.is_failed()
    assert state.state_details.flow_run_id is not None
    shown = reports(FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id])))
    (table,) = [json.loads(str(report.data)) for report in shown if report.key == "spend"]
    assert sum(row["attempts"] for row in table) == len(stage.teacher.requests) > 0
    assert sum(Decimal(row["cost, USD"]) for row in table) == stage.teacher.billed_usd


def test_a_batch_that_was_answered_is_cached_and_asks_nothing(stage: Stage) -> None:
    first, again = stage.run(), stage.run()
    assert {task.state_name for task in batches(first).values()} == {"Completed"}
    assert {task.state_name for task in batches(again).values()} == {"Cached"}
    assert len(stage.teacher.requests) == PROMPTS


def test_a_flow_spends_in_the_ledger_that_the_environment_names(
    stage: Stage, postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.new_database()
    monkeypatch.setenv("POTSTILL_LEDGER", url)
    first, again = stage.run(), stage.run()
    assert {task.state_name for task in batches(first).values()} == {"Completed"}
    assert {task.state_name for task in batches(again).values()} == {"Cached"}
    assert len(stage.teacher.requests) == PROMPTS
    plan = make_plan(StoredRows(open_store().path(stage.prompts), stage.prompts), stage.recipe.teacher, None)
    assert len(Ledger(url).find_answers(answer.key for answer in plan.answers())) == PROMPTS
    assert not (tmp_path / "home" / "ledger.db").exists()


def test_a_batch_that_was_cut_short_is_seen_to_be_tried_again_and_pays_for_nothing_twice(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.teaching.teach_batch.retry_delay_seconds", [1.0, 1.0])
    stage.teacher.behaviour = lambda asked: LONGER_THAN_A_RUN_WAITS if asked.number == 30 else None
    ended = batches(stage.run())
    assert {task.run_count for task in ended.values()} >= {2}
    answered = [asked.body["messages"][-1]["content"] for asked in stage.teacher.requests if asked.status == 200]
    assert len(answered) == len(set(answered)) == PROMPTS


def test_what_fails_is_in_the_bar_and_the_log_of_its_batch(stage: Stage) -> None:
    stage.teacher.fail_next(SERVER_ERROR)
    run = stage.run()
    bars = [str(report.description) for report in reports(run) if report.type == "progress"]
    assert sum(", 1 failed: HTTP 500" in bar for bar in bars) == 1
    deadline = time.monotonic() + RECORDED_SECONDS
    while not any(line.startswith("1 failed: HTTP 500") for line in logged(run)):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_small_batches_leave_as_many_requests_in_flight_as_the_recipe_allows_even_after_an_interrupted_run(
    stage: Stage,
) -> None:
    stop_sessions()
    in_flight = InFlight(12, "billing")
    stage.teacher.latency, stage.teacher.answer = 0.0, in_flight.answer
    teacher = stage.recipe.teacher.model_copy(update={"batch_size": 1, "concurrency": 12})
    teach_only(stage.recipe.model_copy(update={"teacher": teacher}), stage.prompts)
    assert in_flight.most == 12
