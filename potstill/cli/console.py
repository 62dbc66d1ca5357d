"""What commands print: a summary for people or for programs, and progress that fits where it goes."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import ROUND_UP, Decimal
from typing import Annotated, Any, Protocol

import orjson
from cyclopts import Parameter

from potstill.errors import BudgetReachedError, NotAuthorisedError, TransientTeacherError

PLAIN_SECONDS = 5.0
"""How often a progress line is printed where there is no terminal."""
MICRO = Decimal("1e-6")
"""To which money is rounded up for people."""

AsJson = Annotated[
    bool, Parameter(name="--json", negative="", show_default=False, help="Print the summary as JSON, as the last line.")
]


class Advance(Protocol):
    """Tells how far a piece of work is.

    `note` is what is shown beside the bar, `total` what only the work knows, `before` how much of it was done earlier.
    """

    def __call__(self, done: int, /, note: str = "", total: int | None = None, before: int = 0) -> None: ...


def how_it_ended(error: BaseException) -> str:
    """The `status` in the summary of a command that asks a teacher."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, BudgetReachedError):
        return "budget_reached"
    if isinstance(error, NotAuthorisedError):
        return "not_authorised"
    return "incomplete" if isinstance(error, TransientTeacherError) else "failed"


def say(summary: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the summary of a command: aligned lines, or one line of JSON."""
    if as_json:
        print(orjson.dumps(dict(summary), default=_json_value).decode(), flush=True)
        return
    width = max(map(len, summary))
    for name, value in summary.items():
        print(f"{name.replace('_', ' '):<{width}}  {_shown(value)}", flush=True)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Advance]:
    """A Rich bar with throughput and ETA on a terminal, a plain line now and then elsewhere; both on standard error."""
    if not sys.stderr.isatty():
        yield _plain(label, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    more = (TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    started = time.monotonic()
    with Progress(*columns, *more, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, note="", rate="")

        def advance(done: int, /, note: str = "", total: int | None = None, before: int = 0) -> None:
            rate = f"{(done - before) / max(time.monotonic() - started, 0.001):.1f}/s"
            bar.update(task, completed=done, note=note, rate=rate, total=total)

        yield advance


def _plain(label: str, known_total: int | None) -> Advance:
    started = time.monotonic()
    last = started

    def advance(done: int, /, note: str = "", total: int | None = None, before: int = 0) -> None:
        nonlocal last
        now = time.monotonic()
        total = known_total if total is None else total
        is_end = done == total and last > started  # what is over at once needs no line
        if now - last < PLAIN_SECONDS and not is_end:
            return
        last = now
        rate = (done - before) / max(now - started, 0.001)
        left = f", {(total - done) / rate:.0f} s left" if total and rate and done < total else ""
        of = f" of {total}" if total else ""
        print(f"{label}: {done}{of}, {rate:.1f}/s{left}{', ' + note if note else ''}", file=sys.stderr, flush=True)

    return advance


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(inner)}" for key, inner in value.items())
    if isinstance(value, Decimal):
        return f"{value.quantize(MICRO, ROUND_UP).normalize():f}"
    return "–" if value in (None, "") else str(value)


def _json_value(value: Any) -> float | str:
    """Money as a JSON number, so that a program can add it; all else as text."""
    return float(value) if isinstance(value, Decimal) else str(value)
