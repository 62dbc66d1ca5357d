"""What an estimate printed, read again, and an earlier run for it to judge by."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from potstill.artifacts import ArtifactStore, StageKey
from potstill.evaluation import generate
from potstill.recipe import Student, Training
from potstill.records import Completion, Usage, write_parquet
from potstill.student.base import resolve_base
from potstill.training import launch
from potstill.training.spec import TrainingSpec, TrainingStatus


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """What a program reads: the one line."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    def line(self, name: str) -> str:
        """What is said of it under the table."""
        (found,) = [line for line in self.out.splitlines() if line.startswith(f"{name}  ")]
        return found.removeprefix(name).strip()

    def row(self, name: str) -> list[str]:
        """The cells of a row of the table, the words of one that is broken over lines put together again."""
        rows: list[list[str]] = []
        for line in self.out.splitlines():
            if line.startswith("│"):
                cells = [cell.strip() for cell in line.strip("│").split("│")]
                if cells[1]:
                    rows.append(cells)
                else:
                    rows[-1] = [" ".join(filter(None, pair)) for pair in zip(rows[-1], cells, strict=True)]
        (found,) = [cells for cells in rows if cells[0].startswith(name)]
        return found


def record_earlier_run(store: ArtifactStore, student: Student) -> None:
    """The second half of a training of 100 examples and 3 epochs, in 300 s, and two outputs of the base, in 4 and 8 s."""

    def write_student(directory: Path) -> int:
        spec = TrainingSpec(
            run_dir="", method="sft", rows="", student=student, base="", revision=None, config=Training(epochs=3)
        )
        status = TrainingStatus(steps=8, resumed_from_step=4, examples=100, seconds=300)
        (directory / "spec.json").write_text(spec.model_dump_json())
        (directory / "status.json").write_text(status.model_dump_json())
        return 1

    def write_outputs(directory: Path) -> int:
        identity, message = resolve_base(student, store).identity, {"role": "assistant", "content": ""}
        rows = [
            Completion(
                prompt_id=str(seconds),
                teacher=identity,
                completion="",
                message=message,
                finish_reason="stop",
                usage=Usage(),
                seconds=seconds,
            )
            for seconds in (4, 8)
        ]
        write_parquet(directory / "completions.parquet", rows, Completion)
        return 2

    store.build(StageKey("train", 1, "a" * 64), launch.KIND, write_student)
    store.build(StageKey("generate", 1, "b" * 64), generate.KIND, write_outputs)
