"""What Prefect's UI shows of the teacher stage while it runs: the spending, and each batch with its cost and retries."""

from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact, FlowRun, TaskRun
from prefect.context import get_run_context
from prefect.task_runners import ThreadPoolTaskRunner

from potstill.artifacts import ArtifactRef, open_store
from potstill.curation.curate import curate
from potstill.recipe import Recipe
from tasks.policies import MAX_BATCHES_AT_ONCE
from tasks.teaching import teach
from tests.fake_teacher import PRICE, FakeTeacher, error

pytestmark = pytest.mark.flow

PROMPTS = 60
FAR_TOO_LONG = error(429, retry_after="400")
"""Longer than a run waits: its batches end, and Prefect tries them again."""


@flow(task_runner=ThreadPoolTaskRunner(max_workers=MAX_BATCHES_AT_ONCE), persist_result=True)  # pyright: ignore
def teach_only(recipe: Recipe, prompts: ArtifactRef) -> UUID:
    teach(recipe, prompts)
    return get_run_context().flow_run.id  # pyright: ignore


class Taught(NamedTuple):
    teacher: FakeTeacher
    recipe: Recipe
    prompts: ArtifactRef

    def run(self) -> UUID:
        return teach_only(self.recipe, self.prompts)


@pytest.fixture
def taught(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_tickets: Callable[..., Any],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> Iterator[Taught]:
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tasks.teaching.EVERY_SECONDS", 0.7)
    monkeypatch.setattr("potstill.teacher.session.LOOK_SECONDS", 0.5)
    tickets = write_tickets(tmp_path / "log", PROMPTS)
    with FakeTeacher(latency=0.3, answer=lambda _: "billing") as teacher:
        settings = {"batch_size": 20, "concurrency": 4, "price": PRICE.model_dump()}
        recipe = Recipe.model_validate(tiny_recipe(tickets.log, teacher.url, teacher=settings))
        yield Taught(teacher, recipe, curate(recipe.curation, recipe.task.kind, open_store()))


def reports(run: UUID) -> list[Artifact]:
    """The UI reports of a run, oldest first."""
    with get_client(sync_client=True) as client:
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
        return sorted(client.read_artifacts(artifact_filter=of_run), key=lambda report: str(report.created))
