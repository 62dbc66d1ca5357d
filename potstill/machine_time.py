"""How long this machine will generate and train for a recipe, judged by what it did before: never a guess."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from potstill.artifacts import MANIFEST, ArtifactRef, ArtifactStore, StageKey, read_manifest
from potstill.curation.curate import CurationSummary
from potstill.evaluation import generate
from potstill.fingerprint import file_sha256, fingerprint
from potstill.recipe import Recipe
from potstill.records import Completion, read_parquet
from potstill.run_record import RECORD, find_record
from potstill.student import base as bases
from potstill.training import launch
from potstill.training.spec import TrainingSpec, TrainingStatus

FIRST_RUN = "not known before the first run of this base here"
MADE = "made already"


class MachineTime(NamedTuple):
    """What one stage will take of the machine."""

    seconds: float | None
    """None where nothing like it is on record."""
    how: str
    """What the figure rests on."""


class MachineTimes(NamedTuple):
    base_outputs: MachineTime
    training: MachineTime


def expect_times(recipe: Recipe, prompts: ArtifactRef, summary: CurationSummary, store: ArtifactStore) -> MachineTimes:
    """The base's own outputs and the training of a recipe, scaled from the latest ones of the same base in the store.

    Outputs go by the number of prompts, a training by examples and epochs; the length of either is taken to be alike. The
    time to load the base is in that of a training only.
    """
    if _is_made(recipe, prompts, store):
        return MachineTimes(MachineTime(0.0, MADE), MachineTime(0.0, MADE))
    train, test = summary.splits["train"], summary.splits["test"]
    dpo = recipe.training.dpo
    num_pairs = 0 if dpo is None else min(dpo.max_pairs, train)
    outputs = _scaled(_seconds_a_prompt(recipe, store), test + num_pairs, "prompt")
    sft = _scaled(_seconds_an_example(recipe, store, "sft"), train * recipe.training.epochs, "example and epoch")
    if dpo is None:
        return MachineTimes(outputs, sft)
    rung = _scaled(_seconds_an_example(recipe, store, "dpo"), num_pairs * dpo.epochs, "pair and epoch")
    if sft.seconds is None or rung.seconds is None:
        return MachineTimes(outputs, MachineTime(None, FIRST_RUN))
    return MachineTimes(outputs, MachineTime(sft.seconds + rung.seconds, f"SFT {sft.how}; DPO {rung.how}"))


def _scaled(seconds_each: float | None, count: float, unit: str) -> MachineTime:
    if seconds_each is None:
        return MachineTime(None, FIRST_RUN)
    return MachineTime(seconds_each * count, f"{count:,.0f} × {seconds_each:.3g} s per {unit}, as in the latest run")


def _is_made(recipe: Recipe, prompts: ArtifactRef, store: ArtifactStore) -> bool:
    """Whether a run of this very recipe on these prompts has ended, and left its student and evaluation."""
    path = store.root / "reports" / recipe.name / recipe.fingerprint[:12] / RECORD
    if not path.is_file():
        return False
    record = find_record(store.root, str(path))
    kept = (store.find(ref.kind, ref.digest) for ref in (record.student, record.evaluation))
    return record.prompts.digest == prompts.digest and all(ref is not None for ref in kept)


def _seconds_a_prompt(recipe: Recipe, store: ArtifactStore) -> float | None:
    """Of the latest outputs of the recipe's untaught base, in batches."""
    identity = _identity(recipe, store)
    for directory in _latest_first(store, generate.KIND):
        path = directory / "completions.parquet"
        first = next(read_parquet(path, Completion, stop=1), None)
        if identity is None or first is None or first.teacher != identity:
            continue
        seconds = [row.seconds for row in read_parquet(path, Completion)]
        return sum(seconds) / len(seconds)
    return None


def _identity(recipe: Recipe, store: ArtifactStore) -> str | None:
    """What the base signs its outputs with; None for a base out of a package that was never unpacked here."""
    found = bases.find_base(recipe.student)
    if found is not None and found.is_file():
        unpacked = StageKey(bases.STAGE, bases.VERSION, fingerprint({"gguf": file_sha256(found)}))
        if store.lookup(unpacked) is None:
            return None
    return bases.resolve_base(recipe.student, store).identity


def _seconds_an_example(recipe: Recipe, store: ArtifactStore, method: str) -> float | None:
    """Of the latest training of the recipe's base by this method; of one that was resumed, of what was trained then."""
    for directory in _latest_first(store, launch.KIND):
        spec, status = launch.read_spec(directory), launch.read_status(directory)
        seen = _examples_seen(spec, status)
        if (spec.method, spec.student) == (method, recipe.student) and seen > 0:
            return status.seconds / seen
    return None


def _examples_seen(spec: TrainingSpec, status: TrainingStatus) -> float:
    dpo = spec.config.dpo
    epochs = dpo.epochs if spec.method == "dpo" and dpo is not None else spec.config.epochs
    share = (status.steps - status.resumed_from_step) / status.steps if status.steps else 0
    return status.examples * epochs * share


def _latest_first(store: ArtifactStore, kind: str) -> Iterator[Path]:
    found = [path.parent for path in (store.root / "artifacts" / kind).glob(f"*/{MANIFEST}")]
    yield from sorted(found, key=lambda directory: read_manifest(directory).created_at, reverse=True)
