"""A training step of SFT with the completion's positions projected only, beside stock TRL.

    python -m bench.training_step CONTENDER SPEC    one sample

Both run Potstill's own `train_sft` on the same batches; the one switch is all that differs.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any
from unittest.mock import patch

import orjson

from bench.measuring import Benchmark, Sample, Taken, take_in_child
from potstill.artifacts import open_store
from potstill.recipe_file import load_recipe
from potstill.records import Example, write_parquet
from potstill.run_folder import RunFolder
from potstill.student.base import resolve_base
from potstill.training.spec import TrainingSpec, read_points

RECIPE = Path("recipes/demo.yaml")
ANSWERS = Path("examples/demo/answers.jsonl")
STEPS = 3
"""Timed ones; one before them warms up."""
LOSS_TOLERANCE = 1e-3


def main() -> None:
    """One sample in this process: a few steps of `train_sft`, each with its wall and CPU seconds."""
    from potstill.training import sft, trainer

    contender, text = sys.argv[1:]
    spec = TrainingSpec.model_validate_json(text)
    ends: list[tuple[float, float]] = []

    class StepClock(trainer.Recorder):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the trainer's signature
            ends.append((time.perf_counter(), time.process_time()))

    folder = RunFolder(Path(spec.run_dir))
    switch = {"potstill": sft.score_completions_only, "stock TRL": lambda: None}[contender]
    with patch.object(trainer, "Recorder", StepClock), patch.object(sft, "score_completions_only", switch):
        sft.train_sft(spec, folder)
    (wall, cpu), (last_wall, last_cpu) = ends[0], ends[-1]
    values = {"step_seconds": (last_wall - wall) / STEPS, "step_cpu_seconds": (last_cpu - cpu) / STEPS}
    losses = [round(point.loss, 6) for point in read_points(folder.progress) if point.loss is not None]
    print(orjson.dumps({"values": values, "evidence": losses}).decode())


@contextmanager
def _open() -> Iterator[Callable[[str], Taken]]:
    recipe = load_recipe(RECIPE)
    base = resolve_base(recipe.student, open_store())
    with TemporaryDirectory() as directory:
        rows = Path(directory) / "examples.parquet"
        write_parquet(rows, _examples((STEPS + 1) * recipe.training.batch_size), Example)

        def take(contender: str) -> Taken:
            spec = TrainingSpec(
                run_dir=mkdtemp(dir=directory),
                method="sft",
                rows=str(rows),
                student=base.student,
                base=base.location,
                revision=base.revision,
                config=recipe.training,
            )
            return take_in_child("bench.training_step", contender, spec.model_dump_json())

        yield take


def _examples(count: int) -> list[Example]:
    """So many of the demo's answered prompts, spread over the file."""
    lines = ANSWERS.read_bytes().splitlines()
    answered = [orjson.loads(line) for line in lines[:: len(lines) // count][:count]]
    return [
        Example(
            prompt_id=str(number),
            prompt=line["messages"],
            completion=[{"role": "assistant", "content": line["completion"]}],
            split="train",
        )
        for number, line in enumerate(answered)
    ]


def _check(samples: Sequence[Sample]) -> dict[str, Any]:
    first = samples[0].evidence
    if any(len(sample.evidence) != STEPS + 1 for sample in samples):
        raise ValueError(f"a training took other than {STEPS + 1} steps")
    difference = max(abs(a - b) / a for sample in samples for a, b in zip(first, sample.evidence, strict=True))
    if difference > LOSS_TOLERANCE:
        raise ValueError(f"the losses differ by up to {difference:.2%}: {[sample.evidence for sample in samples]}")
    return {"largest_relative_loss_difference": float(f"{difference:.2g}")}


BENCHMARK = Benchmark(
    name="training_step",
    about="docs/LOG.md: the same loss in 28 % less time a step",
    setting={"recipe": str(RECIPE), "steps": STEPS, "warm-up": 1},
    contenders=("potstill", "stock TRL"),
    comparisons=(("potstill", "stock TRL"),),
    repeats=3,
    open=_open,
    check=_check,
)

if __name__ == "__main__":
    main()
