"""`potstill generate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from potstill.cli.console import AsJson, progress, say
from potstill.errors import UsageError
from potstill.kinds import Split

if TYPE_CHECKING:
    from potstill.artifacts import ArtifactRef, ArtifactStore
    from potstill.evaluation.generate import Answerer, GenerationStep


def generate(
    prompts: Annotated[Path, Parameter(name="PROMPTS", negative="")],
    /,
    *,
    out: Path,
    student: Path | None = None,
    release: str | None = None,
    base: str | None = None,
    revision: str | None = None,
    split: Split = "test",
    limit: int | None = None,
    max_tokens: int = 512,
    batch_size: int = 16,
    as_json: AsJson = False,
) -> int:
    """Let a student answer the test split, for evaluate. Name one of --student, --release and --base.

    The base's own answers to the train split are what a DPO rung of train rejects.

    The same command resumes a run that was cut off.

    Args:
        prompts: A PromptSet directory, or chat JSONL whose every line is a test prompt.
        out: Directory to write completions.parquet and completions.jsonl to.
        student: The directory that train wrote.
        release: RECIPE for its champion, or RECIPE@VERSION.
        base: The untaught model: a hub id, a directory, or package:NAME.
        revision: Commit of the base's hub repository.
        split: Which prompts of the set.
        limit: Only so many of them, in the order of their ids.
        max_tokens: Longest answer, in tokens.
        batch_size: Prompts generated together.
    """
    from potstill.artifacts import open_store
    from potstill.cli.flags import checked
    from potstill.evaluation import generate as stage
    from potstill.recipe import Evaluation
    from potstill.student.base import resolve_base

    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: give 1 or more")
    config = checked(Evaluation, max_tokens=max_tokens, batch_size=batch_size)
    store = open_store()
    who = _answerer(student, release, base, revision, store)
    asked = _prompt_set(prompts, store)
    if student is not None:
        _refuse_trained(student, asked, split, store)
    with progress("generate") as advance:

        def on_step(step: GenerationStep) -> None:
            advance(step.done, f"{step.tokens_per_second:.0f} tokens/s", total=step.total)

        found = resolve_base(who.student, store)
        answers = stage.generate(asked, found, who.adapter, config, store, split=split, limit=limit, on_step=on_step)
    store.export(answers, out)
    say({"prompts": answers.num_rows, "digest": answers.digest, "out": str(out)}, as_json=as_json)
    return 0


def _refuse_trained(student: Path, asked: ArtifactRef, split: Split, store: ArtifactStore) -> None:
    """Errors: `UsageError` where the student was trained on what it is to be judged by, as far as its data is at hand."""
    from potstill.records import Example, Prompt, read_parquet
    from potstill.training.launch import read_spec

    spec = read_spec(student)
    rows = Path(spec.rows)
    if split != "test" or spec.method != "sft" or not rows.is_file():
        return
    trained = {row.prompt_id for row in read_parquet(rows, Example) if row.split == "train"}
    test = [row for row in read_parquet(store.path(asked) / "prompts.parquet", Prompt) if row.split == "test"]
    if seen := sum(row.prompt_id in trained for row in test):
        raise UsageError(
            f"{seen} of {len(test)} test prompts were trained on, so the student cannot be judged by them: "
            "name the prompt set that was taught (`potstill curate` splits it), or other prompts"
        )


def _answerer(
    student: Path | None, release: str | None, base: str | None, revision: str | None, store: ArtifactStore
) -> Answerer:
    from potstill import release_stage
    from potstill.artifacts import load_artifact
    from potstill.cli.flags import checked
    from potstill.evaluation.generate import Answerer, adapter_of
    from potstill.recipe import Student
    from potstill.release import resolve
    from potstill.training.launch import KIND, read_spec

    if sum(given is not None for given in (student, release, base)) != 1:
        raise UsageError("which model should answer? Give one of --student DIR, --release RECIPE and --base MODEL")
    if student is not None:
        load_artifact(student, KIND)
        return Answerer(student=read_spec(student).student, adapter=adapter_of(student))
    if release is not None:
        return release_stage.answerer_of(resolve(store.root, release), store)
    return Answerer(student=checked(Student, base=base, revision=revision))


def _prompt_set(path: Path, store: ArtifactStore) -> ArtifactRef:
    from potstill.artifacts import StageKey
    from potstill.cli.inputs import read_rows, tell_unread
    from potstill.fingerprint import fingerprint
    from potstill.records import Prompt, write_parquet

    read = read_rows(path)
    tell_unread(read)
    if read.source is not None:
        return read.source
    rows = list({row.prompt.prompt_id: row.prompt for row in read.rows}.values())
    key = StageKey("read-prompts", 1, fingerprint(rows))
    return store.build(key, "PromptSet", lambda directory: write_parquet(directory / "prompts.parquet", rows, Prompt))
