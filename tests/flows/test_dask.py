"""The teacher's batches on Dask workers that are started for the run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prefect import flow

from potstill.artifacts import ArtifactRef, ArtifactStore, open_store
from potstill.curation.curate import curate
from potstill.errors import BudgetReachedError, UsageError
from potstill.recipe import Recipe
from tasks.teaching import teach
from tests.fake_teacher import FakeTeacher
from tests.in_flight import InFlight

pytestmark = pytest.mark.flow

PROMPTS, BATCHES = 60, 6
CONCURRENCY = 5


@flow(persist_result=True)
def teach_on_dask(recipe: Recipe, prompts: ArtifactRef) -> ArtifactRef:
    """The teacher stage of the parent flow."""
    return teach(recipe, prompts)


class Stage(NamedTuple):
    teacher: FakeTeacher
    recipe: dict[str, Any]
    patch: pytest.MonkeyPatch
    root: Path

    def teach(self, home: str, where: str, **teacher: Any) -> ArtifactRef:
        """Teach in a state directory of that name."""
        self.patch.setenv("POTSTILL_HOME", str(self.root / home))
        fields = {**self.recipe, "teacher": {**self.recipe["teacher"], **teacher}, "compute": {"teach": where}}
        recipe = Recipe.model_validate(fields)
        return teach_on_dask(recipe, curate(recipe.curation, recipe.task.kind, open_store()))

    def answers(self, home: str, completions: ArtifactRef) -> list[bytes]:
        """All that was answered and what it cost; the seconds that each answer took stand elsewhere."""
        directory = ArtifactStore(self.root / home).path(completions)
        return [(directory / name).read_bytes() for name in ("completions.jsonl", "summary.json")]


@pytest.fixture
def stage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_tickets: Callable[..., Any],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> Iterator[Stage]:
    monkeypatch.setenv("POTSTILL_DASK", "local:2")
    tickets = write_tickets(tmp_path / "log", PROMPTS)
    with FakeTeacher(latency=0.2, answer=lambda _: "billing") as teacher:
        settings = {"batch_size": PROMPTS // BATCHES, "concurrency": CONCURRENCY}
        yield Stage(teacher, tiny_recipe(tickets.log, teacher.url, teacher=settings), monkeypatch, tmp_path)


def test_two_workers_share_the_concurrency_and_what_they_make_is_what_one_process_makes(stage: Stage) -> None:
    in_flight = InFlight(CONCURRENCY, "billing")
    stage.teacher.latency, stage.teacher.answer = 0.0, in_flight.answer
    spread = stage.teach("spread", "dask")
    assert len(stage.teacher.requests) == PROMPTS
    assert in_flight.most == CONCURRENCY
    alone = stage.teach("alone", "threads")
    assert stage.answers("alone", alone) == stage.answers("spread", spread)
    assert stage.teach("spread", "dask") == spread
    assert len(stage.teacher.requests) == 2 * PROMPTS, "what the ledger holds is not asked again"


@pytest.mark.drill
def test_a_budget_holds_over_all_workers_and_the_run_goes_on_where_it_is_raised(stage: Stage) -> None:
    stage.teacher.latency = 0.02
    stage.recipe["budget"] = {"run_usd": "0.001"}
    with pytest.raises(BudgetReachedError, match=r"budget run_usd 0\.001 USD reached"):
        stage.teach("home", "dask")
    assert 0 < len(stage.teacher.requests) < PROMPTS
    stage.recipe["budget"] = {"run_usd": None}
    stage.teach("home", "dask")
    assert len(stage.teacher.requests) == PROMPTS


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("", "POTSTILL_DASK is not set: set POTSTILL_DASK to local:N"),
        ("local:6", "concurrency 5 cannot be divided among 6 Dask workers"),
        ("tcp://127.0.0.1:8786", "cannot share a ledger in SQLite"),
    ],
)
def test_what_names_no_usable_workers_ends_the_run_before_anything_is_asked(
    stage: Stage, named: str, said: str
) -> None:
    stage.patch.setenv("POTSTILL_DASK", named)
    with pytest.raises(UsageError, match=said):
        stage.teach("home", "dask")
    assert stage.teacher.requests == []
