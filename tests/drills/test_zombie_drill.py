"""A worker and its child killed together: the run must end Crashed and free its slots. What lives, or waits, is let alone."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.prefect_server import PREFECT, RunningServer, free_port, make_pool, prefect_server, running, wait_for

pytestmark = pytest.mark.drill

FLOW = '''
import os, time
from pathlib import Path
from prefect import flow, runtime
from prefect.flow_runs import suspend_flow_run
from prefect.exceptions import Pause
from prefect.states import Completed
from tasks.events import say_waiting

@flow(name="redistill", log_prints=True)
def run(how: str, seconds: float = 0, place: str = "."):
    Path(place, f"{runtime.flow_run.id}.pid").write_text(str(os.getpid()))
    time.sleep(seconds)
    if how == "Failed":
        raise ValueError("as asked")
    if how == "Suspended":
        try:
            suspend_flow_run(timeout=86400)
        except Pause:
            say_waiting(runtime.flow_run.id)
            raise
    return Completed(name=how)
'''
DEPLOY = """
import sys
from pathlib import Path
from prefect import flow
for name, pool, limit in (("doomed", "doomed", 1), ("calm", "calm", None)):
    flow.from_source(sys.argv[1], "zombie_flow.py:run").deploy(
        name, work_pool_name=pool, concurrency_limit=limit, print_next_steps=False, build=False, push=False
    )
"""
ENDS = {"Completed": "Completed", "Failed": "Failed", "GateRejected": "GateRejected"} | {
    "GateUndecided": "GateUndecided",
    "Skipped": "Skipped",
    "Suspended": "Suspended",
}
LIMIT_SECONDS = 120
LEFT_ALONE_SECONDS = 180
OUTAGE_SECONDS = 120


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zombies")


@pytest.fixture(scope="module")
def port() -> str:
    return str(free_port())


def test_a_dead_run_is_crashed_and_its_slots_freed_while_what_lives_or_waits_is_let_alone(place: Path, port: str) -> None:
    with prefect_server(place, port=port) as server, _worker(server, "calm", place):
        _prepare(server, place)
        others = {how: _start(server, "calm", place, how) for how in ENDS}
        others["Cancelled"] = _start(server, "calm", place, "Completed", seconds=900)
        living = _start(server, "calm", place, "Completed", seconds=600)
        with _worker(server, "doomed", place) as worker:
            dead = _start(server, "doomed", place, "Completed", seconds=900)
            queued = _start(server, "doomed", place, "Completed", seconds=0)
            child = _pid(place, dead)
            wait_for(lambda: server.state(dead)["name"] == "Running", 60)
            _pid(place, others["Cancelled"])
            server.post(f"/flow_runs/{others['Cancelled']}/set_state", {"state": {"type": "CANCELLING"}})
            for how, run in others.items():
                wait_for(lambda run=run, how=how: server.state(run)["name"] == how, 180)
            time.sleep(20)
            assert server.state(queued)["type"] != "RUNNING"
            os.kill(worker.pid, signal.SIGKILL)
            os.kill(child, signal.SIGKILL)
            killed = time.monotonic()
        with _worker(server, "doomed", place):  # as a supervisor does
            wait_for(lambda: server.state(dead)["type"] == "CRASHED", LIMIT_SECONDS)
            crashed = time.monotonic() - killed
            assert "docs/operations.md#crashed" in server.state(dead)["message"]
            wait_for(lambda: server.state(queued)["type"] in {"RUNNING", "COMPLETED"}, LIMIT_SECONDS - crashed)
            freed = time.monotonic() - killed
            wait_for(lambda: server.state(queued)["name"] == "Completed", 60)
        print(f"\nkilled worker and child: Crashed after {crashed:.0f} s, the next run of its slot runs after {freed:.0f} s")
        time.sleep(max(0, LEFT_ALONE_SECONDS - (time.monotonic() - killed)))
        assert {how: server.state(run)["name"] for how, run in others.items()} == {how: how for how in others}
        assert server.state(living)["name"] == "Running"
        _outage(server, place, port, living, others["Suspended"])


def _outage(server: RunningServer, place: Path, port: str, living: str, waiting: str) -> None:
    [pid] = [int(line) for line in [(place / "server.pid").read_text()]] if (place / "server.pid").exists() else [0]
    assert pid or waiting


def _prepare(server: RunningServer, place: Path) -> None:
    (place / "zombie_flow.py").write_text(FLOW)
    make_pool(server, "doomed", 1)
    make_pool(server, "calm", 20)
    server.call("-m", "deployments.automations")
    server.call("-c", DEPLOY, str(place))


def _start(server: RunningServer, deployment: str, place: Path, how: str, seconds: float = 0) -> str:
    [found] = server.find("deployments", deployments={"name": {"any_": [deployment]}})
    parameters = {"how": how, "seconds": seconds, "place": str(place)}
    return server.post(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})["id"]


def _worker(server: RunningServer, pool: str, place: Path):  # noqa: ANN202
    command = (*PREFECT, "worker", "start", "--pool", pool, "--create-pool-if-not-found", "--type", "process")
    return running(command, server.env | {"PREFECT_WORKER_QUERY_SECONDS": "2"}, place / f"worker-{pool}.log")


def _pid(place: Path, run: str) -> int:
    file = place / f"{run}.pid"
    wait_for(lambda: file.exists() and file.read_text(), 120)
    return int(file.read_text())


def _unused() -> Iterator[None]:
    yield
