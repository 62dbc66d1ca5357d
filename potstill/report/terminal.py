"""The figures of a run on a terminal."""

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from potstill.report.page import format_score, format_usd
from potstill.report.run_report import RunSummary


def show_run(run: RunSummary, console: Console, *, remarks: Mapping[str, str] | None = None) -> None:
    """Print what a run found, spent and left. A remark, by the name of its line, replaces a line or follows them."""
    table = Table("arm", "score", "95 % interval", "n", title=f"{run.recipe}: {run.verdict}")
    for name, arm in run.arms.items():
        table.add_row(name, format_score(arm.score), f"{format_score(arm.low)} – {format_score(arm.high)}", str(arm.n))
    console.print(table)
    costs = {name: format_usd(cost) for name, cost in run.cost_per_1k_usd.items()}
    lines = {
        "verdict": run.headline,
        "spent": format_usd(run.spent_usd),
        "1,000 requests": f"{costs['teacher']} at the teacher → {costs['student']} on this student",
        "report": run.report,
        **(remarks or {}),
    }
    for name, value in lines.items():
        console.print(f"[bold]{name:>15}[/bold]  {escape(value)}", highlight=False, soft_wrap=True)
