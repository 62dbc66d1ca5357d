"""The teacher stage of the flow in the provider's batches."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow

from potstill.artifacts import ArtifactRef, StageKey, open_store
from potstill.fingerprint import fingerprint
from potstill.recipe import Recipe
from potstill.records import Completion, Prompt, read_parquet, write_parquet
from tasks.teaching import teach
from tests.batch_teacher import BatchTeacher, error
from tests.fake_teacher import make_teacher, numbered_rows

pytestmark = pytest.mark.flow


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))


@pytest.fixture
def teacher() -> Iterator[BatchTeacher]:
    with BatchTeacher() as teacher:
        yield teacher


@flow(name="teach-only", persist_result=True, result_serializer="json")
def teach_only(recipe: Recipe, prompts: ArtifactRef) -> ArtifactRef:
    return teach(recipe, prompts)


def thirty_prompts() -> ArtifactRef:
    return open_store().build(
        StageKey("curate", 1, fingerprint("thirty")),
        "PromptSet",
        lambda directory: write_parquet(
            directory / "prompts.parquet", (row.prompt for row in numbered_rows(30)), Prompt
        ),
    )


def recipe(teacher: BatchTeacher, **fields: object) -> Recipe:
    given = {"mode": "batch", "batch_poll_seconds": 0.1, "stragglers_online": True, **fields}
    return Recipe.model_validate(
        {
            "name": "batched",
            "task": {"kind": "extraction"},
            "curation": {"inputs": ["log.jsonl"]},
            "teacher": make_teacher(teacher.url, **given).model_dump(),
            "student": {"base": "nothing"},
        }
    )


def completions_of(ref: ArtifactRef) -> list[Completion]:
    return list(read_parquet(open_store().path(ref) / "completions.parquet", Completion))


def test_batches_answer_stragglers_go_online_and_the_same_again_asks_nothing(teacher: BatchTeacher) -> None:
    teacher.polls = 2
    teacher.outcomes = {"#0007": error(500, "api_error")}
    prompts = thirty_prompts()
    completions = teach_only(recipe(teacher), prompts)
    assert [row.completion for row in completions_of(completions)] == [
        f"answer to #{number:04d}" for number in range(30)
    ]
    assert [len(batch.requests) for batch in teacher.batches.values()] == [30]
    assert teacher.operations().count("ask") == 1
    assert not teacher.billed_twice()
    calls = len(teacher.calls)
    assert teach_only(recipe(teacher), prompts).digest == completions.digest
    assert len(teacher.calls) == calls


def test_nothing_is_asked_online_where_only_batches_are_wanted_and_what_stays_bad_is_told(
    teacher: BatchTeacher, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(mark: str) -> str:
        if mark == "#0007":
            teacher.outcomes[mark] = error(500, "api_error")
        return "no JSON" if mark in {"#0003", "#0007"} else "{}"

    teacher.answer = answer
    asked = recipe(teacher, stragglers_online=False, quality_retries=4)
    rows = completions_of(teach_only(asked, thirty_prompts()))
    assert teacher.operations().count("ask") == 0
    assert [len(batch.requests) for batch in teacher.batches.values()] == [30, 2, 2, 2, 2]
    assert [row.prompt_id[-5:-1] for row in rows if row.quarantine] == [*["0003"] * 5, "0007"]
    assert "1 prompts keep their bad answers: the batches brought no further sample" in caplog.text
