"""What the parent and its training child tell each other: the spec before, the curve meanwhile, the status at the end."""

from pathlib import Path
from typing import Literal

from potstill.recipe import Student, Training
from potstill.records import Row
from potstill.run_folder import ChildStatus

OUTPUT = "adapter"
CHECKPOINTS = "checkpoints"


class TrainingSpec(Row):
    """All that a training child needs."""

    run_dir: str
    method: Literal["sft", "dpo"]
    rows: str
    """The Parquet file of examples, or of preference pairs."""
    student: Student
    """The base as the recipe names it."""
    base: str
    """Where it was found."""
    revision: str | None
    adapter: str | None = None
    """The SFT adapter that DPO starts from."""
    config: Training


BARS = "▁▂▃▄▅▆▇█"
DRAWN = 24
"""So many bars draw a curve."""


class Point(Row):
    """One line of `progress.jsonl`."""

    step: int
    total_steps: int
    loss: float | None = None
    validation_loss: float | None = None
    tokens_per_second: float | None = None
    elapsed_seconds: float
    """Since this process began to train."""

    def describe(self) -> str:
        return f"step {self.step} of {self.total_steps}: {self.figures}"

    @property
    def share(self) -> float:
        return self.step / self.total_steps

    @property
    def row(self) -> dict[str, str | int]:
        """The point as a line of a table that a person reads."""
        losses = {"loss": self.loss, "validation loss": self.validation_loss}
        speed = self.tokens_per_second
        return {
            "step": self.step,
            **{name: "" if value is None else f"{value:.4f}" for name, value in losses.items()},
            "tokens/s": "" if speed is None else f"{speed:,.0f}",
            "seconds": f"{self.elapsed_seconds:.1f}",
        }

    @property
    def figures(self) -> str:
        """Losses and speed."""
        found = {"loss": self.loss, "validation loss": self.validation_loss}
        losses = ", ".join(f"{name} {value:.4f}" for name, value in found.items() if value is not None)
        speed = f", {self.tokens_per_second:.0f} tokens/s" if self.tokens_per_second else ""
        return f"{losses}{speed}"


class TrainingStatus(ChildStatus):
    """How a training ended."""

    steps: int = 0
    examples: int = 0
    dropped_too_long: int = 0
    """Examples over `max_length` tokens: counted, never cut."""
    resumed_from_step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def read_points(path: Path) -> list[Point]:
    """The curve so far, one point a step: where a resumed run went over a step again, its later line counts."""
    points: dict[tuple[int, bool], Point] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        if line.endswith(b"}"):  # a killed run may leave half a line
            point = Point.model_validate_json(line)
            points[point.step, point.validation_loss is not None] = point
    return [points[place] for place in sorted(points)]


def describe_curve(points: list[Point]) -> str:
    """One line that draws how the loss fell, such as `loss 3.21 ▇▅▃▂▁ 0.42; step 204 of 204, …`."""
    if not points:
        return "no loss is on record"
    losses = [point.loss for point in points if point.loss is not None]
    if len(losses) < 2:
        return points[-1].describe()
    drawn = [losses[i * (len(losses) - 1) // (DRAWN - 1)] for i in range(DRAWN)]
    low, high = min(drawn), max(drawn)
    levels = [round((loss - low) / (high - low or 1) * (len(BARS) - 1)) for loss in drawn]
    line = "".join(BARS[level] for level in levels)
    return f"loss {losses[0]:.4f} {line} {losses[-1]:.4f}; the last: {points[-1].describe()}"
