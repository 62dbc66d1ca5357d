"""A worker and its child killed together: the run must end Crashed and free its slots. What lives, or waits, is let alone."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.prefect_server import PREFECT, RunningServer, make_pool, prefect_server, running, wait_for

pytestmark = pytest.mark.drill

FLOW = """
import os, time
from pathlib import Path
from prefect import flow, runtime
from prefect.flow_runs import suspend_flow_run
from prefect.states import Completed
from tasks.waiting import set_aside

@flow(name="redistill", log_prints=True)
def run(how: str, seconds: float = 0, place: str = "."):
    Path(place, f"{runtime.flow_run.id}.pid").write_text(str(os.getpid()))
    time.sleep(seconds)
    if how == "Failed":
        raise ValueError("as asked")
    if how == "Suspended":
        with set_aside():
            suspend_flow_run(timeout=86400)
    return Completed(name=how)
"""
DEPLOY = """
import sys
from pathlib import Path
from prefect import flow
for name, pool, limit in (("doomed", "doomed", 1), ("calm", "calm", None)):
    flow.from_source(sys.argv[1], "zombie_flow.py:run").deploy(
        name, work_pool_name=pool, concurrency_limit=limit, print_next_steps=False, build=False, push=False
    )
"""
ENDS = ("Completed", "Failed", "GateRejected", "GateUndecided", "Skipped", "Suspended")
LIMIT_SECONDS = 120
LEFT_ALONE_SECONDS = 180
OUTAGE_SECONDS = 100


def test_dead_runs_are_crashed_and_what_lives_or_waits_is_let_alone_through_an_outage_too(tmp_path: Path) -> None:
    """Two servers at once: most of the time is waiting."""
    places = tmp_path / "killed", tmp_path / "outage"
    for place in places:
        place.mkdir()
    with ThreadPoolExecutor() as both:
        done = [both.submit(scene, place) for scene, place in zip((_killed, _down), places, strict=True)]
    print("\n" + "\n".join(each.result() for each in done))


def _killed(place: Path) -> str:
    """A worker and its child die; the run's slots, of the deployment and of the pool, must be free in time."""
    with prefect_server(place) as server:
        _prepare(server, place)
        with _worker(server, "calm", place):
            others = {how: _start(server, "calm", place, how) for how in ENDS}
            others["Cancelled"] = _start(server, "calm", place, "Completed", seconds=900)
            living = _start(server, "calm", place, "Completed", seconds=900)
            with _worker(server, "doomed", place) as worker:
                dead = _start(server, "doomed", place, "Completed", seconds=900)
                queued = _start(server, "doomed", place, "Completed")
                child = _pid(place, dead)
                wait_for(lambda: server.state(dead)["name"] == "Running", 60)
                _pid(place, others["Cancelled"])
                server.post(f"/flow_runs/{others['Cancelled']}/set_state", {"state": {"type": "CANCELLING"}})
                for how, run in others.items():
                    wait_for(lambda run=run, how=how: server.state(run)["name"] == how, 180)
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
            time.sleep(max(0, LEFT_ALONE_SECONDS - (time.monotonic() - killed)))
            assert {how: server.state(run)["name"] for how, run in others.items()} == {how: how for how in others}
            assert server.state(living)["name"] == "Running"
    return f"worker and child killed: Crashed after {crashed:.0f} s, the next run started after {freed:.0f} s"


def _down(place: Path) -> str:
    """A server is killed, and started again after an outage in which one run died and the others went on."""
    with ExitStack() as outlasting:
        return _live_through(outlasting, place, str(free_port()))


def _live_through(outlasting: ExitStack, place: Path, port: str) -> str:
    with ExitStack() as first:
        server = first.enter_context(prefect_server(place, port=port))
        _prepare(server, place)
        worker = first.enter_context(_worker(server, "doomed", place))
        outlasting.enter_context(_worker(server, "calm", place))
        waiting = _start(server, "calm", place, "Suspended")
        living = _start(server, "calm", place, "Completed", seconds=OUTAGE_SECONDS + 60)
        dead = _start(server, "doomed", place, "Completed", seconds=900)
        child = _pid(place, dead)
        wait_for(lambda: server.state(living)["name"] == server.state(dead)["name"] == "Running", 120)
        wait_for(lambda: server.state(waiting)["name"] == "Suspended", 120)
        time.sleep(10)
        os.kill(server.pid, signal.SIGKILL)
        os.kill(worker.pid, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
    time.sleep(OUTAGE_SECONDS)
    said = server.call("-m", "deployments.automations", "--before-server").stdout
    with prefect_server(place, port=port) as server:
        up = time.monotonic()
        wait_for(lambda: server.state(dead)["type"] == "CRASHED", 240)
        found = time.monotonic() - up
        assert server.state(living)["name"] in {"Running", "Completed"}
        wait_for(lambda: server.state(living)["name"] == "Completed", 240)
        assert server.state(waiting)["name"] == "Suspended"
    return f"{said.strip()}; the run that died in the outage was Crashed {found:.0f} s after the new start"


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


def _worker(server: RunningServer, pool: str, place: Path):
    command = (*PREFECT, "worker", "start", "--pool", pool)
    return running(command, server.env | {"PREFECT_WORKER_QUERY_SECONDS": "2"}, place / f"worker-{pool}.log")


def _pid(place: Path, run: str) -> int:
    file = place / f"{run}.pid"
    wait_for(lambda: file.exists() and file.read_text(), 120)
    return int(file.read_text())
