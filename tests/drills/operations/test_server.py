"""The flow on a real Prefect server: deployed as prefect.yaml says and run by a worker, then by hand against the server."""

import json
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.fake_teacher import FakeTeacher
from tests.line_on_server import Line, running_line
from tests.prefect_server import wait_for

pytestmark = pytest.mark.drill

ROOT = Path(__file__).parents[3]
STAGES = {
    "take_in",
    "check",
    "curate",
    "assemble",
    "train_sft",
    "score_arms",
    "decide",
    "release",
    "report",
    "collect_completions",
}
BATCHES = {f"teach-batch-{index}" for index in range(4)}
ARMS = {"generate-base", "generate-candidate"}
UI_REPORTS = {
    "curation",
    "spend",
    "quarantine",
    "training-sft",
    "curve-sft",
    "answers-base",
    "answers-candidate",
    "evaluation",
    "gate",
    "summary",
    "report",
}


STARTING_SECONDS = 180
SPENDING_SECONDS = 15
QUIET_SECONDS = 10


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Line]:
    place = tmp_path_factory.mktemp("server")
    roots = f"{tmp_path_factory.getbasetemp()}:{tiny_base}"
    with running_line(place, workers=("cpu",), POTSTILL_DATA_ROOTS=roots) as line:
        yield line


def test_a_deployed_run_and_one_by_hand_show_on_the_server_and_share_what_they_make(
    line: Line,
    tmp_path: Path,
    write_tickets: Callable[..., Any],
    replay_teacher: Callable[..., Any],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> None:
    tickets = write_tickets(tmp_path / "log", 400)
    with replay_teacher(tickets.answers) as teacher:
        recipe = tiny_recipe(tickets.log, teacher)
        deployed = line.start("distill-student/demo", recipe)
        ended = line.wait_for_end(deployed)
        assert ended["name"] == "Completed", ended["message"]
        expected = STAGES | BATCHES | ARMS
        assert task_states(line, deployed, len(expected)) == dict.fromkeys(expected, "Completed")
        assert set(line.reports(deployed)) == UI_REPORTS
        assert _requests(teacher) == 400

        path = tmp_path / "tickets.yaml"
        path.write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-m", "potstill.cli", "run", str(path), "--json"]
        by_hand = subprocess.run(command, env=line.server.env, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
        assert by_hand.returncode == 0
        assert json.loads(by_hand.stdout.splitlines()[-1])["verdict"] == "passed"
        [again] = line.server.find("flow_runs", flow_runs={"deployment_id": {"is_null_": True}})
        never_cached = dict.fromkeys(("take_in", "check", "release", "report"), "Completed")
        assert task_states(line, again, len(expected)) == dict.fromkeys(expected, "Cached") | never_cached
        assert _requests(teacher) == 400
    deployed = line.server.get(f"/flow_runs/{deployed['id']}")
    print(f"\ndeployed run {deployed['total_run_time']:.0f} s, the same by hand {again['total_run_time']:.0f} s")


def test_a_run_that_is_cancelled_on_the_server_stops_spending_within_seconds(
    line: Line, tmp_path: Path, write_tickets: Callable[..., Any], tiny_recipe: Callable[..., dict[str, Any]]
) -> None:
    prompts = 250
    tickets = write_tickets(tmp_path / "log", prompts, first=400)
    with FakeTeacher(latency=0.5, answer=lambda _: "billing") as teacher:
        recipe = tiny_recipe(tickets.log, teacher.url, teacher={"concurrency": 4, "batch_size": 16})
        recipe["name"] = "cancelled"
        run = line.start("distill-student/demo", recipe)
        teacher.wait_for(20, seconds=STARTING_SECONDS)
        asked = time.monotonic()
        line.cancel(run)
        assert line.wait_for_end(run)["type"] == "CANCELLED"
        seconds = time.monotonic() - asked
        last = _wait_until_quiet(teacher) - asked
        assert last < SPENDING_SECONDS, f"the last request came {last:.1f} s after the run was cancelled"
        number = len(teacher.requests)
        assert number < prompts
        statuses = _statuses(line.home / "ledger.db", f"month/{recipe['name']}/")
        assert statuses.keys() <= {"answered", "unknown"}, "nothing is left in flight"
        assert sum(statuses.values()) == number

        next_run = line.start("distill-student/demo", recipe)
        teacher.wait_for(prompts + statuses["unknown"], seconds=STARTING_SECONDS)
        time.sleep(2)
        assert len(teacher.requests) == prompts + statuses["unknown"], "the next run asks only for what is missing"
        line.cancel(next_run)
        line.wait_for_end(next_run)
    print(
        f"\ncancelled after {number} requests: the last came {last:.2f} s later, the run was over after {seconds:.1f} s"
    )


def task_states(line: Line, run: dict[str, Any], count: int) -> dict[str, str]:
    """The state of every task of a run, by name. The server records them some seconds after they end."""

    def recorded() -> list[dict[str, Any]]:
        found = line.server.find("task_runs", flow_runs={"id": {"any_": [run["id"]]}})
        return found if len(found) >= count and all(task["state_type"] == "COMPLETED" for task in found) else []

    return {_name(task["name"]): task["state_name"] for task in wait_for(recorded, 120)}


def _wait_until_quiet(teacher: FakeTeacher) -> float:
    """When the last request came: none has followed for `QUIET_SECONDS`."""
    while True:
        last = teacher.requests[-1].started_at
        if time.monotonic() - last > QUIET_SECONDS:
            return last
        time.sleep(0.2)


def _statuses(ledger: Path, month: str) -> Counter[str]:
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as database:
        return Counter(
            status for (status,) in database.execute("SELECT status FROM attempts WHERE month LIKE ?", (f"{month}%",))
        )


def _requests(teacher: str) -> int:
    return httpx.get(f"{teacher}/replay/stats").json()["requests"]


def _name(task_run: str) -> str:
    """A task run's name without the number that Prefect gives to unnamed ones."""
    stem, _, _ = task_run.rpartition("-")
    return stem if stem in STAGES else task_run
