"""`potstill train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from potstill.cli.console import AsJson, progress, say
from potstill.errors import UsageError

if TYPE_CHECKING:
    from potstill.artifacts import ArtifactRef, ArtifactStore
    from potstill.recipe import Curation
    from potstill.records import Prompt
    from potstill.training.spec import Point

PROMPTS_KIND = "PromptSet"


def train(
    dataset: Annotated[Path, Parameter(name="DATASET", negative="")],
    /,
    *,
    out: Path,
    base: str,
    revision: str | None = None,
    prompts: Path | None = None,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.05,
    split_key: str = "potstill",
    rejected: Path | None = None,
    dpo_learning_rate: float = 5e-6,
    epochs: float = 2.0,
    learning_rate: float = 2e-4,
    batch_size: int = 16,
    max_length: int = 2048,
    lora_rank: int = 32,
    lora_alpha: int = 64,
    seed: int = 0,
    checkpoint_steps: int = 20,
    as_json: AsJson = False,
) -> int:
    """Train a student on the teacher's answers: LoRA SFT, and DPO where the base's own answers are given.

    Prompts of the test split are never trained on. The same command resumes a run that was cut off.

    Args:
        dataset: An SFTDataset directory, or the completions.jsonl (or its directory) that teach wrote.
        out: Directory to write the student to.
        base: A hub id, a directory, or package:NAME.
        revision: Commit of the hub repository.
        prompts: The PromptSet whose splits hold, where it is not the one that was taught.
        test_fraction: Of lines that come from no PromptSet: share that is kept from training.
        validation_fraction: Of such lines: share to watch training with.
        split_key: Of such lines: keys the split.
        rejected: What `generate --base --split train` wrote: adds a DPO rung, the teacher's answers against these.
        dpo_learning_rate: Of the DPO rung.
        epochs: Passes over the data.
        learning_rate: Peak, falling linearly.
        batch_size: Sequences a step.
        max_length: Tokens of prompt and completion; longer examples are dropped and counted.
        lora_rank: Rank of the adapter.
        lora_alpha: Its scale.
        seed: Of shuffling and initialisation.
        checkpoint_steps: A crash costs at most these steps.
    """
    from potstill.artifacts import load_artifact, open_store
    from potstill.cli.flags import checked
    from potstill.evaluation.generate import KIND as COMPLETIONS_KIND
    from potstill.recipe import Curation, Dpo, Student, Training
    from potstill.student.base import resolve_base
    from potstill.training import examples, launch

    config = checked(
        Training,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        max_length=max_length,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        seed=seed,
        checkpoint_steps=checkpoint_steps,
        dpo=None if rejected is None else checked(Dpo, learning_rate=dpo_learning_rate),
    )
    split = checked(
        Curation,
        inputs=(str(dataset),),
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        split_key=split_key,
    )
    store = open_store()
    rows = _dataset(dataset, prompts, split, store)
    found = resolve_base(checked(Student, base=base, revision=revision), store)
    with progress("train") as advance:

        def on_point(point: Point) -> None:
            advance(point.step, point.figures, total=point.total_steps)

        student = launch.train_sft(rows, found, config, store, on_point=on_point)
        if rejected is not None and config.dpo is not None:
            own = load_artifact(rejected, COMPLETIONS_KIND)
            pairs = examples.assemble_preferences(rows, own, config.dpo.max_pairs, store)
            if pairs.num_rows == 0:
                print(f"no DPO: {rejected} differs nowhere from the teacher's answers", file=sys.stderr)
            else:
                student = launch.train_dpo(pairs, student, found, config, store, on_point=on_point)
    store.export(student, out)
    status = launch.read_status(store.path(student))
    say({**status.model_dump(mode="json", exclude={"error", "is_fault_of_data"}), "out": str(out)}, as_json=as_json)
    return 0


def _dataset(path: Path, prompts: Path | None, split: Curation, store: ArtifactStore) -> ArtifactRef:
    from potstill.artifacts import MANIFEST, load_artifact
    from potstill.cli.inputs import read_completion_lines, terms_of_completions
    from potstill.training import examples

    directory = path if path.is_dir() else path.parent
    if path.is_dir() and (path / examples.EXAMPLES).is_file():
        return load_artifact(path, examples.SFT_KIND)
    if (directory / MANIFEST).is_file():
        completions = load_artifact(directory, "Completions")
        asked = _taught_prompts(directory, store) if prompts is None else load_artifact(prompts, PROMPTS_KIND)
        if asked is not None:
            return examples.assemble_sft(asked, completions, store)
    elif prompts is not None:
        raise UsageError(f"{directory}: no manifest.json: with --prompts, name the directory that teach wrote")
    lines = read_completion_lines(path / "completions.jsonl" if path.is_dir() else path)
    taught = [(_in_split(prompt, split), completion) for prompt, completion in lines]
    return examples.assemble_lines(taught, store, terms_of_completions(path))


def _taught_prompts(directory: Path, store: ArtifactStore) -> ArtifactRef | None:
    """The PromptSet that teach was given, whose splits must hold; None where it was given chat lines."""
    from potstill.artifacts import read_manifest

    for digest in read_manifest(directory).inputs:
        if (found := store.find(PROMPTS_KIND, digest)) is None:
            raise UsageError(
                f"{directory} was taught from a prompt set that is not in {store.root}: name it with --prompts, "
                "so that its test split is not trained on"
            )
        return found
    return None


def _in_split(prompt: Prompt, config: Curation) -> Prompt:
    from potstill.curation.split import assign_split

    return prompt.model_copy(update={"split": assign_split(prompt.group_id, config)})
