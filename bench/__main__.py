"""`python -m bench [NAME …] [--repeats N]`, from the root of the repository: runs benchmarks and keeps their results."""

from pathlib import Path
from typing import Literal

import cyclopts
from rich.console import Console
from rich.table import Table

from bench import startup, teach_throughput, training_step
from bench.measuring import Result, Sample, Spread, run

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = {module.BENCHMARK.name: module.BENCHMARK for module in (startup, teach_throughput, training_step)}


def main(*names: Literal["startup", "teach_throughput", "training_step"], repeats: int | None = None) -> None:
    """Measure Potstill beside its peers.

    Args:
        names: benchmarks to run; all where none is named.
        repeats: samples of each contender, in place of the benchmark's own number.
    """
    console = Console()

    def tell(sample: Sample) -> None:
        values = ", ".join(f"{_words(name)} {value:.4g}" for name, value in sample.values.items())
        console.print(
            f"{sample.contender}, repeat {sample.repeat + 1}: {values}", style="dim", highlight=False, soft_wrap=True
        )

    for name in names or BENCHMARKS:
        benchmark = BENCHMARKS[name]
        result = run(benchmark, repeats or benchmark.repeats, tell)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(result.model_dump_json(indent=2) + "\n")
        _show(console, result)


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
    checked = ", ".join(f"{_words(name)} {value}" for name, value in result.checked.items())
    console.print(f"Other processes kept {result.other_cores} cores busy. {checked}", highlight=False)


def _cells(spread: Spread) -> list[str]:
    return [f"{value:.3g}" for value in (spread.min, spread.median, spread.max)]


def _words(name: str) -> str:
    return name.replace("_", " ")


if __name__ == "__main__":
    cyclopts.run(main)
