"""The parent's side of training: starts the child, tells its progress, and puts the adapter into the store."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from potstill.artifacts import ArtifactRef, ArtifactStore, StageKey
from potstill.fingerprint import fingerprint
from potstill.recipe import Dpo, Training
from potstill.run_folder import RunFolder
from potstill.student.base import Base
from potstill.tail import Tail
from potstill.training.examples import EXAMPLES, PAIRS
from potstill.training.spec import CHECKPOINTS, OUTPUT, Point, TrainingSpec, TrainingStatus, read_points

STAGE = "train"
VERSION = 2
KIND = "StudentAdapter"

ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"),
    *("--num_cpu_threads_per_process", str(os.cpu_count() or 1)),  # its default is one thread
    *("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "potstill.training.run"),
)

OnPoint = Callable[[Point], None]


def sft_key(dataset: ArtifactRef, base: Base, config: Training) -> StageKey:
    """The key of an SFT run; how often it saves is no part of it."""
    settings = config.model_dump(exclude={"dpo", "checkpoint_steps"})
    return StageKey(STAGE, VERSION, fingerprint(["sft", dataset.digest, base.identity, settings]))


def dpo_key(pairs: ArtifactRef, adapter: ArtifactRef, config: Training, dpo: Dpo) -> StageKey:
    """The key of a DPO run on top of an SFT adapter."""
    settings = config.model_dump(include={"batch_size", "max_length", "seed"})
    return StageKey(STAGE, VERSION, fingerprint(["dpo", pairs.digest, adapter.digest, settings, dpo]))


def train_sft(
    dataset: ArtifactRef,
    base: Base,
    config: Training,
    store: ArtifactStore,
    *,
    on_point: OnPoint | None = None,
    recipe_fingerprint: str = "",
) -> ArtifactRef:
    """The SFT adapter of a dataset. A run that was cut off goes on from its last checkpoint.

    Errors: `SubprocessError` where the child fails, `DataError` where the data is at fault.
    """
    key = sft_key(dataset, base, config)
    spec = TrainingSpec(
        run_dir=str(store.root / "runs" / "train" / key.digest[:24]),
        method="sft",
        rows=str(store.path(dataset) / EXAMPLES),
        student=base.student,
        base=base.location,
        revision=base.revision,
        config=config,
    )
    student = store.build(
        key, KIND, lambda out: _run(spec, out, on_point), inputs=(dataset,), recipe_fingerprint=recipe_fingerprint
    )
    _forget_checkpoints(spec)
    return student


def train_dpo(
    pairs: ArtifactRef,
    adapter: ArtifactRef,
    base: Base,
    config: Training,
    store: ArtifactStore,
    *,
    on_point: OnPoint | None = None,
    recipe_fingerprint: str = "",
) -> ArtifactRef:
    """The SFT adapter after a DPO rung on these pairs. Errors: as `train_sft`."""
    assert config.dpo is not None
    key = dpo_key(pairs, adapter, config, config.dpo)
    spec = TrainingSpec(
        run_dir=str(store.root / "runs" / "train" / key.digest[:24]),
        method="dpo",
        rows=str(store.path(pairs) / PAIRS),
        student=base.student,
        base=base.location,
        revision=base.revision,
        adapter=str(store.path(adapter) / OUTPUT),
        config=config,
    )
    student = store.build(
        key, KIND, lambda out: _run(spec, out, on_point), inputs=(pairs, adapter), recipe_fingerprint=recipe_fingerprint
    )
    _forget_checkpoints(spec)
    return student


def read_curve(directory: Path) -> list[Point]:
    """The training curve of a StudentAdapter."""
    return read_points(directory / "progress.jsonl")


def read_spec(directory: Path) -> TrainingSpec:
    """What a StudentAdapter was trained as."""
    return TrainingSpec.model_validate_json((directory / "spec.json").read_bytes())


def read_status(directory: Path) -> TrainingStatus:
    """How the training of a StudentAdapter went."""
    return TrainingStatus.model_validate_json((directory / "status.json").read_bytes())


def _run(spec: TrainingSpec, out: Path, on_point: OnPoint | None) -> int:
    folder = RunFolder(Path(spec.run_dir))
    status = folder.launch(ACCELERATE, spec, TrainingStatus, Tail(folder.progress, Point, on_point))
    shutil.copytree(folder.path / OUTPUT, out / OUTPUT)
    for path in (folder.spec, folder.progress, folder.status):
        shutil.copy2(path, out / path.name)
    return status.examples


def _forget_checkpoints(spec: TrainingSpec) -> None:
    """Only now: until the store has the adapter, they are what a killed run goes on from."""
    shutil.rmtree(Path(spec.run_dir) / CHECKPOINTS, ignore_errors=True)
