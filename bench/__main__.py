"""`python -m bench [NAME …] [--repeats N]`, from the root of the repository: runs benchmarks and keeps their results.

It ends with code 1 where a bar was missed.
"""

from pathlib import Path

import cyclopts
from rich.console import Console
from rich.table import Table

from bench import startup, teacher, training_step
from bench.fast_teacher import load
from bench.measuring import Benchmark, Result, Sample, Spread, run

STYLES = {"met": "green", "missed": "bold red", "not measured": "yellow"}
RESULTS = Path(__file__).parent / "results"
ALWAYS = {module.BENCHMARK.name: [module.BENCHMARK] for module in (startup, training_step)}
WHEN_NAMED = {
    "teacher": [teacher.AT_ONCE, teacher.IN_200_MS, teacher.SIZES, teacher.IN_A_FLOW],
    "fast_teacher": [load.BENCHMARK],
}
"""Run when they are asked for only: long, or about the bench itself."""
BENCHMARKS: dict[str, list[Benchmark]] = ALWAYS | WHEN_NAMED
BY_NAME = {benchmark.name: [benchmark] for benchmarks in BENCHMARKS.values() for benchmark in benchmarks} | BENCHMARKS


def main(*names: str, repeats: int | None = None) -> None:
    """Measure Potstill beside its peers.

    Args:
        names: benchmarks to run; where none is named, the short ones. `teacher` stands for all that begin with it.
        repeats: samples of each contender, in place of the benchmark's own number.
    """
    console = Console()

    def tell(sample: Sample) -> None:
        values = ", ".join(f"{_words(name)} {value:.4g}" for name, value in sample.values.items())
        console.print(
            f"{sample.contender}, repeat {sample.repeat + 1}: {values}", style="dim", highlight=False, soft_wrap=True
        )

    if unknown := set(names) - set(BY_NAME):
        raise SystemExit(f"no benchmark {', '.join(sorted(unknown))}: there are {', '.join(BY_NAME)}")
    missed = 0
    for benchmark in (one for name in names or ALWAYS for one in BY_NAME[name]):
        result = run(benchmark, repeats or benchmark.repeats, tell)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{benchmark.name}.json").write_text(result.model_dump_json(indent=2) + "\n")
        _show(console, result)
        missed += sum(bar.verdict == "missed" for bar in result.bars)
    if missed:
        raise SystemExit(1)


def _show(console: Console, result: Result) -> None:
    table = Table("metric", "", "min", "median", "max", title=f"{result.benchmark}: {result.about}")
    for column in table.columns[2:]:
        column.justify = "right"
    for metric in result.samples[0].values:
        for contender, spreads in result.contenders.items():
            table.add_row(_words(metric), contender, *_cells(spreads[metric]))
        table.add_section()
    for ratio in result.ratios:
        table.add_row(_words(ratio.metric), f"{ratio.of} ÷ {ratio.to}", *_cells(ratio.spread), style="bold")
    console.print(table)
    for contender, why in result.skipped.items():
        console.print(f"{contender} was left out: {why}", style="yellow", highlight=False, soft_wrap=True)
    for bar in result.bars:
        figure = "–" if bar.figure is None else f"{bar.figure:.3g}"
        said = f"{bar.claim}: {figure}, bar {'≥' if bar.at_least else '≤'} {bar.limit:.3g}: {bar.verdict}"
        console.print(said, style=STYLES[bar.verdict], highlight=False, soft_wrap=True)
    checked = ", ".join(f"{_words(name)} {value}" for name, value in result.checked.items())
    console.print(f"Other processes kept {result.other_cores} cores busy. {checked}", highlight=False)


def _cells(spread: Spread) -> list[str]:
    return [f"{value:.3g}" for value in (spread.min, spread.median, spread.max)]


def _words(name: str) -> str:
    return name.replace("_", " ")


if __name__ == "__main__":
    cyclopts.run(main)
