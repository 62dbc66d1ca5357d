"""Inline SVG for the run report. Colours come from the page's CSS classes, so one drawing serves light, dark and print.

Positions are percentages or a stretched 100 × 100 box, and every label is HTML beside the drawing: text keeps its size on a telephone.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

SCORE_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
MAX_CURVE_POINTS = 400


class CurvePoint(NamedTuple):
    step: int
    loss: float


class Curve(NamedTuple):
    """A drawn loss curve with the labels that stand beside it."""

    svg: Markup
    y_labels: tuple[str, ...]
    """From top to bottom, evenly spaced."""
    x_labels: tuple[str, ...]
    """From left to right, evenly spaced."""


def interval_bar(score: float | None, low: float | None, high: float | None, floor: float | None) -> Markup:
    """A score on the line from 0 to 1: a thick bar up to it, its interval as a whisker, the floor as a dashed line."""
    parts = [_vertical(tick, "grid tall") for tick in SCORE_TICKS]
    if score is not None:
        parts.append(f'<rect class="bar" x="0" y="9" width="{_percent(score)}" height="14" rx="2"/>')
    if floor is not None:
        parts.append(_vertical(floor, "floor tall"))
    if low is not None and high is not None:
        parts.append(f'<line class="whisker" x1="{_percent(low)}" x2="{_percent(high)}" y1="16" y2="16"/>')
        parts += [f'<line class="whisker" x1="{x}" x2="{x}" y1="11" y2="21"/>' for x in (_percent(low), _percent(high))]
    if score is not None:
        parts.append(f'<circle class="dot" cx="{_percent(score)}" cy="16" r="4.5"/>')
    label = "no score" if score is None else f"score {score:.3f}"
    if low is not None and high is not None:
        label += f", interval {low:.3f} to {high:.3f}"
    return _svg(parts, label, height=32)


def share_bar(share: float, tone: str) -> Markup:
    """A bar that fills `share` (0 to 1) of its line; at least a sliver where the share is above 0."""
    width = max(_clamp(share), 0.004) if share > 0 else 0.0
    bars = (("track", "100%"), (escape(tone), _percent(width)))
    parts = [f'<rect class="{css_class}" width="{size}" height="14" rx="2"/>' for css_class, size in bars]
    return _svg(parts, f"{share:.1%}", height=14)


def loss_curve(training: Sequence[CurvePoint], validation: Sequence[CurvePoint]) -> Curve | None:
    """Training loss as a line and validation loss as dots, from 0; None where there is no finite point.

    Of more than 400 points, evenly spaced ones and the last are drawn.
    """
    training, validation = _finite(training), _finite(validation)
    points = [*training, *validation]
    if not points:
        return None
    last_step = max(point.step for point in points) or 1
    first_step = min(0, *(point.step for point in points))
    unit = _nice(max(point.loss for point in points) / 4)
    top = unit * max(1, math.ceil(max(point.loss for point in points) / unit))
    rows = round(top / unit)

    def place(point: CurvePoint) -> str:
        x = 100 * (point.step - first_step) / (last_step - first_step)
        return f"{x:.2f} {100 - 100 * max(0.0, point.loss) / top:.2f}"

    parts = [f'<path class="grid" d="M0 {100 * row / rows:.2f}H100"/>' for row in range(rows + 1)]
    if training:
        parts.append(f'<path class="line" d="M{" L".join(map(place, _thin(training)))}"/>')
    if validation:
        parts.append('<path class="dots" d="' + " ".join(f"M{place(point)}h0" for point in _thin(validation)) + '"/>')
    label = f"loss over {last_step} steps" + (
        f", from {training[0].loss:.3f} to {training[-1].loss:.3f}" if training else ""
    )
    svg = Markup(  # noqa: S704  # made of numbers and of this module's own class names; the label is escaped
        f'<svg class="curve" viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
    y_labels = tuple(f"{unit * row:g}" for row in range(rows, -1, -1))
    x_labels = tuple(f"{first_step + (last_step - first_step) * part / 4:.0f}" for part in range(5))
    return Curve(svg, y_labels, x_labels)


def _svg(parts: Iterable[str], label: str, *, height: int) -> Markup:
    start = f'<svg width="100%" height="{height}" role="img" aria-label="{escape(label)}">'
    return Markup(f"{start}{''.join(parts)}</svg>")  # noqa: S704  # as above


def _vertical(at: float, css_class: str) -> str:
    return f'<line class="{css_class}" x1="{_percent(at)}" x2="{_percent(at)}" y1="0" y2="100%"/>'


def _percent(share: float) -> str:
    return f"{100 * _clamp(share):.2f}%"


def _clamp(share: float) -> float:
    return min(1.0, max(0.0, share))


def _finite(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    return sorted(point for point in points if math.isfinite(point.loss))


def _thin(points: list[CurvePoint]) -> list[CurvePoint]:
    stride = math.ceil(len(points) / MAX_CURVE_POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


def _nice(value: float) -> float:
    """The next of 1, 2, 2.5, 5 × a power of ten; 0.25 where the value is not above 0."""
    if value <= 0:
        return 0.25
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * 0.999)
