"""Contenders in turns, each sample in a fresh process, and what the samples say: ratios of one run, never bare times."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

from bench.machine import describe_machine, other_cpu_seconds
from potstill.errors import SubprocessError
from potstill.records import Row
from potstill.subprocesses import ENVIRONMENT

ROOT = Path(__file__).parents[1]
CHILD_ENVIRONMENT = {**ENVIRONMENT, "PYTHONSAFEPATH": "", "PYTHONDONTWRITEBYTECODE": ""}
"""That of Potstill's own children, but the code in the current directory is what is measured: children run in `ROOT`.

A shell that forbids bytecode would have every start compile every module.
"""


class Taken(NamedTuple):
    """What one fresh process measured."""

    values: dict[str, float]
    """By metric, its unit in the name."""
    evidence: Any = None
    """What shows that it did the same work as the others."""


class Sample(Row):
    """One turn of one contender."""

    contender: str
    repeat: int
    load_before: float
    """Load average of the last minute, in which this run's own work counts too."""
    values: dict[str, float]
    evidence: Any


class Spread(Row):
    min: float
    median: float
    max: float


class Ratio(Row):
    """One contender's values through another's, paired by repeat."""

    of: str
    to: str
    metric: str
    spread: Spread


class Bar(NamedTuple):
    """What a median must come to."""

    claim: str
    metric: str
    of: str
    """The contender."""
    to: str | None
    """The one whose values it is divided by, turn by turn; None where it stands for itself."""
    limit: float
    at_least: bool = False
    """Where more is better; else the limit is the most that is allowed."""


class Judged(Row):
    """A bar and the figure beside it."""

    claim: str
    figure: float | None
    limit: float
    at_least: bool
    verdict: Literal["met", "missed", "not measured"]
    """Not measured is what needs a contender that could not take part."""


class Benchmark(NamedTuple):
    """What is measured, and against whom."""

    name: str
    about: str
    """The claim that it tests, with its place, or the question that it answers."""
    setting: dict[str, Any]
    contenders: tuple[str, ...]
    comparisons: tuple[tuple[str, str], ...]
    repeats: int
    open: Callable[[], AbstractContextManager[Callable[[str], Taken]]]
    """Sets up what the contenders share, and yields what takes one sample of a contender."""
    prepare: Callable[[str], str | None] = lambda _: None
    """Makes a contender ready; returns why it cannot take part, or None where it can."""
    check: Callable[[Sequence[Sample]], dict[str, Any]] = lambda _: {}
    """What the evidence shows. Errors: `ValueError` where the contenders did not do the same work."""
    bars: tuple[Bar, ...] = ()


class Result(Row):
    """A run of a benchmark, as it is kept."""

    benchmark: str
    about: str
    date: date
    machine: dict[str, Any]
    other_cores: float
    """Cores that other processes kept busy meanwhile, on average."""
    setting: dict[str, Any]
    ratios: list[Ratio]
    contenders: dict[str, dict[str, Spread]]
    """By contender and metric."""
    skipped: dict[str, str]
    """Contenders that could not take part, and why."""
    checked: dict[str, Any]
    bars: list[Judged]
    samples: list[Sample]


def run(benchmark: Benchmark, repeats: int, on_sample: Callable[[Sample], None]) -> Result:
    """Take so many samples of each contender, A B A B …

    Errors: `SubprocessError` where a contender fails, `ValueError` where they did not do the same work.
    """
    skipped = {name: why for name in benchmark.contenders if (why := benchmark.prepare(name))}
    contenders = [name for name in benchmark.contenders if name not in skipped]
    samples: list[Sample] = []
    measured: list[dict[str, float]] = []
    """What the samples hold, before it is rounded for who reads them."""
    with benchmark.open() as take:
        started, others = time.monotonic(), other_cpu_seconds()
        for repeat in range(repeats):
            for contender in contenders:
                load = round(os.getloadavg()[0], 2)
                values, evidence = take(contender)
                measured.append(values)
                samples.append(
                    Sample(
                        contender=contender,
                        repeat=repeat,
                        load_before=load,
                        values={metric: _round(value) for metric, value in values.items()},
                        evidence=evidence,
                    )
                )
                on_sample(samples[-1])
        other_cores = (other_cpu_seconds() - others) / (time.monotonic() - started)
    metrics = list(samples[0].values)

    def of(contender: str, metric: str) -> list[float]:
        pairs = zip(samples, measured, strict=True)
        return [values[metric] for sample, values in pairs if sample.contender == contender]

    def judge(bar: Bar) -> Judged:
        if not {bar.of, bar.to or bar.of} <= set(contenders):
            return Judged(**_shown(bar), figure=None, verdict="not measured")
        own = of(bar.of, bar.metric)
        values = own if bar.to is None else [x / y for x, y in zip(own, of(bar.to, bar.metric), strict=True)]
        figure = statistics.median(values)
        is_met = figure >= bar.limit if bar.at_least else figure <= bar.limit
        return Judged(**_shown(bar), figure=_round(figure), verdict="met" if is_met else "missed")

    return Result(
        benchmark=benchmark.name,
        about=benchmark.about,
        date=datetime.now(UTC).date(),
        machine=describe_machine(),
        other_cores=round(other_cores, 2),
        setting=benchmark.setting,
        ratios=[
            Ratio(
                of=a,
                to=b,
                metric=metric,
                spread=_spread(x / y for x, y in zip(of(a, metric), of(b, metric), strict=True)),
            )
            for a, b in benchmark.comparisons
            if a in contenders and b in contenders
            for metric in metrics
        ],
        contenders={name: {metric: _spread(of(name, metric)) for metric in metrics} for name in contenders},
        skipped=skipped,
        checked=benchmark.check(samples),
        bars=[judge(bar) for bar in benchmark.bars],
        samples=samples,
    )


def take_in_child(module: str, *arguments: str) -> Taken:
    """Run a module in a fresh process, with the environment of Potstill's children; its last line is a `Taken` as JSON."""
    env = {**os.environ, **CHILD_ENVIRONMENT}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=env, check=False)
    if done.returncode != 0:
        raise SubprocessError(f"{module} {arguments[0]} failed: {done.stderr.decode(errors='replace')[-2000:]}")
    return Taken(**orjson.loads(done.stdout.splitlines()[-1]))


def _shown(bar: Bar) -> dict[str, Any]:
    return {"claim": bar.claim, "limit": bar.limit, "at_least": bar.at_least}


def _spread(values: Iterable[float]) -> Spread:
    found = list(values)
    return Spread(min=_round(min(found)), median=_round(statistics.median(found)), max=_round(max(found)))


def _round(value: float) -> float:
    return float(f"{value:.4g}")
