"""A student's answers: killed in the middle, a run answers only what is missing."""

from pathlib import Path

import psutil
import pytest

from potstill.artifacts import ArtifactRef, ArtifactStore, StageKey
from potstill.errors import DataError, SubprocessError
from potstill.evaluation.generate import ANSWERS, GenerationStep, generate, read_answers
from potstill.recipe import Evaluation, Student
from potstill.records import Completion, Prompt, read_parquet, write_parquet
from potstill.student.base import Base, resolve_base

pytestmark = pytest.mark.flow

PROMPTS = 100
ONE_BY_ONE = Evaluation(max_tokens=64, batch_size=1)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home")


@pytest.fixture
def prompts(store: ArtifactStore) -> ArtifactRef:
    rows = [
        Prompt(
            prompt_id=f"{number:032x}",
            messages=[{"role": "user", "content": f"please help {number}"}],
            task_kind="classification",
            workload="",
            group_id=str(number),
            split="test",
            source="log:1",
        )
        for number in range(PROMPTS)
    ]
    key = StageKey("curate", 1, "0" * 64)
    return store.build(key, "PromptSet", lambda directory: write_parquet(directory / "prompts.parquet", rows, Prompt))


@pytest.fixture
def base(tiny_base: Path, store: ArtifactStore) -> Base:
    return resolve_base(Student(base=str(tiny_base)), store)


def test_a_killed_run_keeps_its_answers_and_the_next_gives_only_the_others(
    store: ArtifactStore, prompts: ArtifactRef, base: Base
) -> None:
    killed: list[int] = []

    def kill(step: GenerationStep) -> None:
        if step.done >= 5 and not killed:
            children = psutil.Process().children()
            living = [process for process in children if process.status() != psutil.STATUS_ZOMBIE]
            [child] = [process for process in living if "potstill.evaluation.run" in process.cmdline()]
            killed.append(child.pid)
            child.kill()

    with pytest.raises(SubprocessError):
        generate(prompts, base, None, ONE_BY_ONE, store, on_step=kill)
    [folder] = (store.root / "runs" / "generate").iterdir()
    kept = read_answers(folder)
    assert 5 <= len(kept) < PROMPTS
    with (folder / ANSWERS).open("ab") as file:
        file.write(b'{"prompt_id": "half')

    steps: list[GenerationStep] = []
    answers = generate(prompts, base, None, ONE_BY_ONE, store, on_step=steps.append)
    assert [step.done for step in steps] == list(range(len(kept) + 1, PROMPTS + 1))
    given = {row.prompt_id: row for row in read_parquet(store.path(answers) / "completions.parquet", Completion)}
    assert len(given) == PROMPTS
    assert [given[row.prompt_id] for row in kept] == kept, "their seconds tell an answer from the same one made again"
    assert not (folder / ANSWERS).exists()


def test_a_split_without_prompts_is_bad_data(store: ArtifactStore, prompts: ArtifactRef, base: Base) -> None:
    with pytest.raises(DataError, match="the train split is empty"):
        generate(prompts, base, None, ONE_BY_ONE, store, split="train")
