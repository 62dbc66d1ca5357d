"""One recipe as a user runs it: its command in a process of its own, and what can be seen of it from outside."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import psutil

from potstill.artifacts import ArtifactStore
from potstill.evaluation.report import read_arm_answers, read_arms
from potstill.promotions import Aliases
from potstill.release import aliases, releases, verify, version_directory
from potstill.run_record import find_record
from potstill.training.launch import read_curve

RUN_SECONDS = 600
ORPHAN_SECONDS = 15


class Outcome(NamedTuple):
    """What a run comes to; nothing in it depends on the clock."""

    verdict: str
    spent_usd: Decimal
    curve: list[tuple[int, float | None, float | None]]
    """Step, loss and validation loss."""
    answers: dict[str, dict[str, str]]
    """By arm and prompt."""
    digest: str
    aliases: Aliases


class Line(NamedTuple):
    """A recipe `recipe.yaml` below `root`, with its own state and teacher."""

    root: Path
    teacher: str
    prefect: Path
    settings: Mapping[str, str] = MappingProxyType({})
    """More of its environment."""

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def releases(self) -> Path:
        return self.home / "releases" / "tickets"

    def start(self) -> "subprocess.Popen[bytes]":
        """Run the command in a session of its own; files take its output, since an orphan would hold a pipe open."""
        command = [sys.executable, "-m", "potstill.cli", "run", str(self.root / "recipe.yaml"), "--json"]
        foreign = ("PREFECT_", "POTSTILL_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
            "POTSTILL_HOME": str(self.home),
            "PREFECT_HOME": str(self.prefect),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
            **self.settings,
        }
        with (self.root / "out").open("wb") as out, (self.root / "log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=out, stderr=log, start_new_session=True)

    def finish(self) -> dict[str, Any]:
        """Run the command to its end and return the summary that it prints."""
        status = self.start().wait(RUN_SECONDS)
        assert status == 0, (self.root / "log").read_text()[-3000:]
        return json.loads((self.root / "out").read_text().splitlines()[-1])

    def requests(self) -> int:
        """How many requests the teacher has counted."""
        return httpx.get(f"{self.teacher}/replay/stats").json()["requests"]

    def attempts(self) -> dict[str, list[str]]:
        """How every attempt of the ledger stands, by answer key."""
        found: dict[str, list[str]] = {}
        with closing(sqlite3.connect(f"file:{self.home / 'ledger.db'}?mode=ro", uri=True)) as ledger:
            for key, status in ledger.execute("SELECT answer_key, status FROM attempts ORDER BY id"):
                found.setdefault(key, []).append(status)
        return found

    def artefacts(self) -> dict[Path, int]:
        """The artefacts that are whole, and when they were made."""
        return {path: path.stat().st_mtime_ns for path in (self.home / "artifacts").rglob("manifest.json")}

    def unfinished(self) -> list[Path]:
        """What lies about of work that is not done."""
        return [*self.home.glob("tmp/*"), *self.releases.glob("tmp/*"), *self.home.glob("runs/*/*/checkpoints")]

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this line, whoever its parent is now: all of it inherits POTSTILL_HOME."""
        return [process for process in psutil.process_iter() if _home_of(process) == str(self.home)]

    def wait_for_the_end(self) -> float:
        """Wait until nothing runs for this line any more, and return the seconds that it took."""
        began = time.monotonic()
        while left := self.processes():
            assert time.monotonic() - began < ORPHAN_SECONDS, f"still running: {left}"
            time.sleep(0.05)
        return time.monotonic() - began

    def outcome(self, summary: dict[str, Any]) -> Outcome:
        """What a finished run came to. It holds exactly one version, and every byte of that is right."""
        store = ArtifactStore(self.home)
        record = find_record(self.home, "tickets")
        [version] = releases(self.home, "tickets")
        verify(version_directory(self.home, version))
        arms = read_arms(store.path(record.evaluation))
        given = {arm: read_arm_answers(store.path(ref)) for arm, ref in arms.items()}
        return Outcome(
            verdict=summary["verdict"],
            spent_usd=Decimal(summary["spent_usd"]),
            curve=[(point.step, point.loss, point.validation_loss) for point in read_curve(store.path(record.student))],
            answers={arm: {prompt: row.completion for prompt, row in rows.items()} for arm, rows in given.items()},
            digest=version.digest,
            aliases=aliases(self.home, "tickets"),
        )


def _home_of(process: psutil.Process) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get("POTSTILL_HOME")
    except psutil.Error:
        return None
