"""What `potstill estimate` says: a table for people, or one line of JSON."""

from collections.abc import Iterator
from decimal import Decimal

from potstill.cli.console import say, show_table
from potstill.llm.pricing import Processing
from potstill.records import Row
from potstill.report.page import format_usd
from potstill.teacher.estimate import Cost, Figure, TokenEstimate

COLUMNS = ("what", "expected", "95 % interval", "at most", "how")


class SmokeReport(Row):
    prompts: int
    answered: int
    """Prompts of these whose every answer is known."""
    asked: int
    """Attempts that this command made."""
    cost_usd: Decimal
    """What they cost."""
    answers: int
    quarantined: int
    reasons: dict[str, int]
    attempts: int
    """Behind these answers, whenever they were made."""
    wasted: int
    """Those that were billed, or may have been, and gave no answer; included in the estimate."""


class MachineCost(Row):
    """What a stage on this machine will cost."""

    cost_usd: Decimal | None
    seconds: float | None
    how: str


class Allowance(Row):
    """What is left of one cap."""

    name: str
    cap_usd: Decimal
    left_usd: Decimal

    def fits(self, cost: Cost) -> str:
        """Whether a cost is within it: `yes`, `expected` where only the upper end is not, `no`, or `unknown`."""
        if cost.expected_usd is None:
            return "yes" if cost.bound_usd <= self.left_usd else "unknown"
        if cost.expected_usd > self.left_usd:
            return "no"
        high = cost.bound_usd if cost.high_usd is None else cost.high_usd
        return "yes" if high <= self.left_usd else "expected"

    def describe(self, cost: Cost) -> str:
        """How it fits, in words that fit what is known of the cost."""
        fits = self.fits(cost)
        if fits == "yes":
            return "fits, even at most" if cost.high_usd is None else "fits, the upper end of the interval too"
        if fits == "expected":
            most = "the cost at most" if cost.high_usd is None else "the upper end of the interval"
            return f"the expected cost fits, {most} does not"
        return "does not fit" if fits == "no" else "not known"


class CostReport(Row):
    """The estimate of a recipe."""

    recipe: str
    status: str
    mode: Processing
    """As the recipe asks its teacher."""
    prompts: int
    answers: int
    missing: int
    """Answers that the ledger lacks: what the costs are of."""
    smoke: SmokeReport
    tokens: TokenEstimate | None
    teacher: dict[Processing, Cost]
    prices: dict[Processing, str]
    """Where they come from."""
    judge: Cost | None
    """None: no recipe has a judge yet."""
    base_outputs: MachineCost
    training: MachineCost
    budget: list[Allowance]
    note: str = ""


def show_report(report: CostReport, *, as_json: bool) -> None:
    """Print it."""
    if as_json:
        say(_as_json(report), as_json=True)
        return
    show_table(COLUMNS, _table(report))
    say(dict(_lines(report)), as_json=False)


def _as_json(report: CostReport) -> dict[str, object]:
    tokens = report.tokens
    budget = {
        row.name: {
            "cap_usd": row.cap_usd,
            "left_usd": row.left_usd,
            "fits": {name: row.fits(cost) for name, cost in report.teacher.items()},
        }
        for row in report.budget
    }
    kinds = {} if tokens is None else {"input": tokens.input._asdict(), "output": tokens.output._asdict()}
    return {
        **report.model_dump(exclude={"tokens", "budget"}),
        "tokens": None if tokens is None else {**kinds, "reasoning_share": tokens.reasoning_share},
        "budget": budget,
    }


def _table(report: CostReport) -> Iterator[tuple[str, ...]]:
    for name, cost in report.teacher.items():
        interval = "–" if cost.low_usd is None else f"{format_usd(cost.low_usd)} – {format_usd(cost.high_usd)}"
        what = f"teacher, {name}" + (" (as this recipe asks)" if name == report.mode else "")
        how = f"price: {report.prices[name]}"
        yield (what, format_usd(cost.expected_usd), interval, format_usd(cost.bound_usd), how)
    yield ("judge", "–", "–", "–", "none in this recipe")
    for stage, cost in (("base outputs", report.base_outputs), ("training", report.training)):
        usd = "–" if cost.cost_usd is None else format_usd(cost.cost_usd)
        yield (stage, usd, "–", "–", cost.how)


def _lines(report: CostReport) -> Iterator[tuple[str, str]]:
    smoke = report.smoke
    yield "status", report.status
    yield (
        "smoke",
        f"{smoke.answered} of {smoke.prompts} prompts known; {smoke.asked} asked now for {format_usd(smoke.cost_usd)}",
    )
    reasons = ", ".join(f"{count} × {reason}" for reason, count in smoke.reasons.items())
    yield (
        "not to be trained on",
        f"{smoke.quarantined} of {smoke.answers} answers" + (f": {reasons}" if reasons else ""),
    )
    if smoke.wasted:
        yield (
            "billed, or perhaps billed, without an answer",
            f"{smoke.wasted} of {smoke.attempts} attempts; included in the estimate",
        )
    yield "still to be asked", f"{report.missing:,} of {report.answers:,} answers to {report.prompts:,} prompts"
    if (tokens := report.tokens) is not None and report.missing:
        yield "tokens of input", _shown(tokens.input)
        reasoning = f", {tokens.reasoning_share:.0%} of them reasoning" if tokens.reasoning_share else ""
        yield "tokens of output", _shown(tokens.output) + reasoning
    for row in report.budget:
        fits = row.describe(report.teacher[report.mode])
        left = f"{format_usd(row.left_usd)} left of {format_usd(row.cap_usd)}"
        yield f"budget {row.name}", f"{left}: {fits}"
    if not report.budget:
        yield "budget", "none: nothing stops the spending"
    if report.note:
        yield "note", report.note


def _shown(figure: Figure) -> str:
    interval = "" if figure.low is None or figure.high is None else f" ({figure.low:,.0f} – {figure.high:,.0f})"
    return f"{figure.expected:,.0f}{interval}"
