"""The run report: one self-contained HTML page, the verdict first."""

from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from pydantic import Field

from potstill.records import Row
from potstill.report.charts import SCORE_TICKS, CurvePoint, interval_bar, loss_curve, share_bar

Verdict = Literal["passed", "rejected", "undecided"]

HEADLINES: dict[Verdict | None, tuple[str, str]] = {
    "passed": ("Passed", "The student keeps enough of the teacher's quality to serve."),
    "rejected": ("Rejected", "The student falls short of what the recipe asks. Nothing was released."),
    "undecided": ("Undecided", "The evidence does not decide it either way. Nothing was released."),
    None: ("No verdict", "The gate has not decided on this run."),
}
MAX_DISAGREEMENTS = 20
MAX_PROMPT_CHARACTERS = 1200
MAX_ANSWER_CHARACTERS = 600
TEACHER_ARM = "teacher"


class CheckRow(Row):
    """One check of the gate."""

    name: str
    verdict: Verdict
    figure: float | None = None
    bound: float | None = None
    """The confidence bound that is held against the threshold."""
    threshold: float | None = None
    detail: str = ""


class ArmRow(Row):
    """One arm's score on the test split."""

    arm: str
    """`teacher`, `base`, `candidate` or `champion`."""
    metric: str
    score: float | None
    low: float | None = None
    high: float | None = None
    n: int
    """Scored prompts."""
    unscored: int = 0
    truncated: int = 0
    errors: int = 0


class SpendRow(Row):
    """What was spent on one purpose with one model."""

    purpose: str
    model: str
    attempts: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal
    unknown_usd: Decimal = Decimal(0)
    """Upper bound of attempts whose bill cannot be known."""


class CostPer1k(Row):
    """What 1,000 requests cost, before and after."""

    teacher: Decimal | None
    student: Decimal | None
    how: str
    """The sentence that says how both were computed."""


class CurveRow(Row):
    step: int
    loss: float


class FunnelRow(Row):
    """How many prompts were left after a step; the first row is what came in."""

    label: str
    count: int


class DisagreementRow(Row):
    """A test prompt on which the candidate did not give what was wanted."""

    prompt: str
    target: str
    teacher: str
    candidate: str


class LineageRow(Row):
    label: str
    value: str


class ReportData(Row):
    """All that the page shows; every empty list and every None has its own sentence."""

    recipe_name: str
    created_at: datetime
    verdict: Verdict | None = None
    reasons: tuple[str, ...] = ()
    checks: tuple[CheckRow, ...] = ()
    arms: tuple[ArmRow, ...] = ()
    floor: float | None = None
    """The share of the teacher's score that must be kept."""
    retention: float | None = None
    retention_low: float | None = None
    """Lower confidence bound of `retention`."""
    spend: tuple[SpendRow, ...] = ()
    cost_per_1k_usd: CostPer1k | None = None
    training_curve: tuple[CurveRow, ...] = ()
    validation_curve: tuple[CurveRow, ...] = ()
    funnel: tuple[FunnelRow, ...] = ()
    disagreements: tuple[DisagreementRow, ...] = ()
    num_disagreements: int | None = Field(default=None, ge=0)
    """How many there are in all, where `disagreements` is a sample."""
    lineage: tuple[LineageRow, ...] = ()
    notes: str = ""
    commands: tuple[str, ...] = ()
    """How to reproduce the run, one shell command each."""


def render(data: ReportData) -> str:
    """The page as HTML: no script, no reference to anything outside, every given text escaped.

    At most 20 disagreements are shown, long texts shortened, and the page says so.
    """
    word, headline = HEADLINES[data.verdict]
    training = [CurvePoint(row.step, row.loss) for row in data.training_curve]
    validation = [CurvePoint(row.step, row.loss) for row in data.validation_curve]
    shown = data.disagreements[:MAX_DISAGREEMENTS]
    return _template().render(
        data=data,
        verdict_word=word,
        headline=headline,
        floor_score=floor_score(data),
        ticks=SCORE_TICKS,
        total_usd=sum((row.cost_usd for row in data.spend), Decimal(0)),
        unknown_usd=sum((row.unknown_usd for row in data.spend), Decimal(0)),
        cost_ratio=cost_ratio(data.cost_per_1k_usd),
        dearest=max((cost for cost in _costs(data) if cost is not None), default=None),
        curve=loss_curve(training, validation),
        shown=shown,
        num_disagreements=data.num_disagreements if data.num_disagreements is not None else len(data.disagreements),
    )


def floor_score(data: ReportData) -> float | None:
    """The score that the floor amounts to: the share that must be kept, of the teacher's score."""
    teacher = next((arm.score for arm in data.arms if arm.arm == TEACHER_ARM), None)
    return None if data.floor is None or teacher is None else data.floor * teacher


def cost_ratio(costs: CostPer1k | None) -> str | None:
    """How the student's cost compares: `12.4× cheaper`, or `1.3× dearer`; None where one of them is unknown or 0."""
    if costs is None or not costs.teacher or not costs.student:
        return None
    ratio = costs.teacher / costs.student
    return f"{_times(ratio)} cheaper" if ratio >= 1 else f"{_times(1 / ratio)} dearer"


def format_usd(value: Decimal | None) -> str:
    """Dollars with cents, or with three significant digits below one dollar."""
    if value is None:
        return "unknown"
    if value == 0 or abs(value) >= 1:
        return f"${value:,.2f}"
    decimals = max(2, 2 - value.copy_abs().adjusted())
    return f"${value:.{decimals}f}"


def format_score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def format_figure(value: float | None) -> str:
    """A share with three decimals, a count as a count."""
    return f"{value:,.0f}" if value is not None and value > 1 and value == int(value) else format_score(value)


def format_count(value: int) -> str:
    return f"{value:,}"


def shorten(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"


def _costs(data: ReportData) -> tuple[Decimal | None, ...]:
    return () if data.cost_per_1k_usd is None else (data.cost_per_1k_usd.teacher, data.cost_per_1k_usd.student)


def _times(ratio: Decimal) -> str:
    return f"{ratio:,.0f}×" if ratio >= 100 else f"{ratio:.1f}×"


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("potstill.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "usd": format_usd,
        "score": format_score,
        "figure": format_figure,
        "count": format_count,
        "shorten": shorten,
    }
    environment.globals |= {
        "interval_bar": interval_bar,
        "share_bar": share_bar,
        "max_prompt": MAX_PROMPT_CHARACTERS,
        "max_answer": MAX_ANSWER_CHARACTERS,
    }
    return environment.get_template("template.html.j2")
