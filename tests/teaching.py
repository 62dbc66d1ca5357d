"""`potstill teach` as a user runs it, in a process of its own, against a teacher that logs what it served."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from bench.fast_teacher.dialects import is_answer_to
from bench.fast_teacher.log import Logged

ROOT = Path(__file__).parents[1]
TEACH_SECONDS = 300
PRICE = (Decimal(1), Decimal(10))
"""USD for a million tokens, in and out."""


class Started(NamedTuple):
    """A command that runs."""

    process: "subprocess.Popen[str]"
    at: float
    """When it was started, as seconds since 1970."""


class Teaching(NamedTuple):
    """A prompt file, the flags that it is taught with, and a directory for state and output."""

    prompts: Path
    flags: tuple[object, ...]
    directory: Path

    @property
    def out(self) -> Path:
        return self.directory / "out"

    def start(self) -> Started:
        """Run the command; files take what it says."""
        price = ",".join(map(str, PRICE))
        given = ["teach", self.prompts, "--out", self.out, "--price", price, "--json", *self.flags]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("POTSTILL_")}
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "said.txt").open("w") as said, (self.directory / "summary.txt").open("w") as summary:
            started_at = time.time()
            process = subprocess.Popen(
                [sys.executable, "-m", "potstill.cli", *map(str, given)],
                cwd=ROOT,
                env=environment | {"POTSTILL_HOME": str(self.directory / "home")},
                stdin=subprocess.DEVNULL,
                stdout=summary,
                stderr=said,
                text=True,
            )
        return Started(process, started_at)

    def finish(self, started: Started | None = None) -> dict[str, Any]:
        """Run the command to its end, or what was started; returns its summary."""
        process = (started or self.start()).process
        code = process.wait(TEACH_SECONDS)
        assert code == 0, (self.directory / "said.txt").read_text()
        return json.loads((self.directory / "summary.txt").read_text().splitlines()[-1])

    def statuses(self) -> Counter[str]:
        """How many attempts of each status the ledger holds."""
        with closing(sqlite3.connect(f"file:{self.directory / 'home/ledger.db'}?mode=ro", uri=True)) as ledger:
            return Counter(dict(ledger.execute("SELECT status, count(*) FROM attempts GROUP BY status")))


class Written(NamedTuple):
    """The lines of a completions.jsonl, judged."""

    right: int
    """Prompts that have the answer to them."""
    empty: int
    wrong: int
    """Anything else: another prompt's answer, or half of one."""


def read_written(path: Path) -> Written:
    right: set[str] = set()
    empty = wrong = 0
    with path.open() as lines:
        for line in lines:
            row = json.loads(line)
            if is_answer_to(row["completion"], row["id"]):
                right.add(row["id"])
            elif row["completion"].strip():
                wrong += 1
            else:
                empty += 1
    return Written(len(right), empty, wrong)


def bill_usd(rows: Iterable[Logged]) -> Decimal:
    """What the teacher charges for these requests."""
    tokens = [(row.input_tokens, row.output_tokens) for row in rows]
    return (sum(given for given, _ in tokens) * PRICE[0] + sum(taken for _, taken in tokens) * PRICE[1]) / 1_000_000
