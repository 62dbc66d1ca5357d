"""An arm's answers to a split of the prompts, generated in a child that a later run resumes."""

import shutil
from collections.abc import Callable
from pathlib import Path

from potstill.artifacts import ArtifactRef, ArtifactStore, StageKey, read_manifest
from potstill.errors import DataError
from potstill.fingerprint import fingerprint
from potstill.recipe import Evaluation, Student
from potstill.records import (
    Completion,
    Prompt,
    Row,
    Split,
    TeacherTerms,
    adapter_name,
    read_parquet,
    write_jsonl,
    write_parquet,
)
from potstill.run_folder import ChildStatus, RunFolder
from potstill.student.base import Base
from potstill.tail import Tail

STAGE = "generate"
VERSION = 2
KIND = "Completions"
ANSWERS = "answers.jsonl"
SPEED = "speed.json"


class Adapter(Row):
    """An adapter to generate with: a StudentAdapter of the store, or a released version."""

    directory: str
    digest: str
    teacher_terms: tuple[TeacherTerms, ...] = ()
    """Of the teachers that it learned from."""


def adapter_of(student: Path) -> Adapter:
    """The adapter of a StudentAdapter artefact's directory."""
    manifest = read_manifest(student)
    return Adapter(
        directory=str(student.absolute() / "adapter"), digest=manifest.digest, teacher_terms=manifest.teacher_terms
    )


class Answerer(Row):
    """Who answers: a base, and the adapter that was trained on it."""

    student: Student
    adapter: Adapter | None = None
    """None for the untaught base."""


class GenerationSpec(Row):
    """All that a generation child needs."""

    run_dir: str
    prompts: str
    split: Split
    limit: int | None
    """Only the first so many prompts of the split, in the order of their ids."""
    base: str
    revision: str | None
    adapter: str | None
    name: str
    """What the answers are signed with."""
    config: Evaluation


class GenerationStep(Row):
    """One line of `progress.jsonl`."""

    done: int
    total: int
    tokens_per_second: float

    @property
    def share(self) -> float:
        return self.done / self.total

    def describe(self) -> str:
        return f"{self.done} of {self.total} prompts answered, {self.tokens_per_second:.0f} tokens/s"


class ServedSpeed(Row):
    """How fast a taught student answers one prompt at a time, which is how it is served."""

    prompts: int
    seconds_per_prompt: float


OnStep = Callable[[GenerationStep], None]


def generation_key(
    prompts: ArtifactRef, base: Base, adapter: Adapter | None, config: Evaluation, split: Split, limit: int | None
) -> StageKey:
    """The key of an arm's answers; how many are generated together is no part of it."""
    identity = adapter.digest if adapter else None
    content = [prompts.digest, split, limit, base.identity, identity, config.max_tokens]
    return StageKey(STAGE, VERSION, fingerprint(content))


def generate(
    prompts: ArtifactRef,
    base: Base,
    adapter: Adapter | None,
    config: Evaluation,
    store: ArtifactStore,
    *,
    split: Split = "test",
    limit: int | None = None,
    on_step: OnStep | None = None,
) -> ArtifactRef:
    """The answers of the base, or of an adapter on it, as `Completions`.

    Errors: `SubprocessError` where the child fails, `DataError` where the split is empty.
    """
    key = generation_key(prompts, base, adapter, config, split, limit)
    folder = RunFolder(store.root / "runs" / "generate" / key.digest[:24])
    spec = GenerationSpec(
        run_dir=str(folder.path),
        prompts=str(store.path(prompts) / "prompts.parquet"),
        split=split,
        limit=limit,
        base=base.location,
        revision=base.revision,
        adapter=adapter.directory if adapter else None,
        name=adapter_name(adapter.digest) if adapter else base.identity,
        config=config,
    )

    def produce(directory: Path) -> int:
        folder.launch(
            ("-m", "potstill.evaluation.run"), spec, ChildStatus, Tail(folder.progress, GenerationStep, on_step)
        )
        answers = {row.prompt_id: row for row in read_answers(folder.path)}
        rows = [answers[prompt.prompt_id] for prompt in select_prompts(spec)]
        write_jsonl(directory / "completions.jsonl", rows)
        if adapter is not None:
            shutil.copy2(folder.path / SPEED, directory / SPEED)
        return write_parquet(directory / "completions.parquet", rows, Completion)

    terms = adapter.teacher_terms if adapter else ()
    answers = store.build(key, KIND, produce, inputs=(prompts,), teacher_terms=terms)
    for name in (ANSWERS, SPEED):  # only now: until the store has them, they are what a killed run goes on from
        (folder.path / name).unlink(missing_ok=True)
    return answers


def read_speed(directory: Path) -> ServedSpeed:
    """How fast the student answered whose completions a directory holds."""
    return ServedSpeed.model_validate_json((directory / SPEED).read_bytes())


def read_answers(run_dir: Path) -> list[Completion]:
    """What a run has generated so far; half a line of a killed run does not count."""
    path = run_dir / ANSWERS
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [Completion.model_validate_json(line) for line in lines if line.endswith(b"\n")]


def select_prompts(spec: GenerationSpec) -> list[Prompt]:
    """The prompts that a spec asks for. Errors: `DataError` where there is none."""
    chosen = [prompt for prompt in read_parquet(Path(spec.prompts), Prompt) if prompt.split == spec.split]
    if spec.limit is not None:
        chosen = sorted(chosen, key=lambda prompt: prompt.prompt_id)[: spec.limit]
    if not chosen:
        raise DataError(f"the {spec.split} split is empty: raise curation.{spec.split}_fraction or bring more prompts")
    return chosen
