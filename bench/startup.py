"""How long `potstill --help` takes, beside a Python that does nothing."""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measuring import Benchmark, Taken

COMMANDS = {
    "potstill --help": [str(Path(sys.executable).parent / "potstill"), "--help"],
    "python -c pass": [sys.executable, "-c", "pass"],
}


@contextmanager
def _open() -> Iterator[Callable[[str], Taken]]:
    for contender in COMMANDS:
        _take(contender)  # the first one reads from the disk
    yield _take


def _take(contender: str) -> Taken:
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(COMMANDS[contender], stdout=subprocess.DEVNULL, check=True)
    wall_seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Taken({"wall_seconds": wall_seconds, "cpu_seconds": cpu_seconds})


BENCHMARK = Benchmark(
    name="startup",
    about="CONTRIBUTING.md: help starts in under 0.5 s",
    setting={"warm-up": 1},
    contenders=tuple(COMMANDS),
    comparisons=(("potstill --help", "python -c pass"),),
    repeats=10,
    open=_open,
)
