"""A worker and its child killed together, before the child begins or after: the run must end Crashed and free its slots.

What lives, starts slowly, or waits, is let alone.
"""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
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
SLOW = """
import os, time
from zombie_flow import run as run
if "PREFECT__FLOW_RUN_ID" in os.environ:
    time.sleep(45)
"""
ASLEEP = """
import os, time
from pathlib import Path
from zombie_flow import run as run
while "PREFECT__FLOW_RUN_ID" in os.environ and not Path(__file__).with_name("wake").exists():
    time.sleep(1)
"""
DEPLOY = """
import sys
from prefect import flow
for name, file, pool, limit in (
    ("doomed", "zombie_flow", "doomed", 1),
    ("unborn", "asleep_flow", "unborn", 1),
    ("given-up", "asleep_flow", "given-up", 1),
    ("calm", "zombie_flow", "calm", None),
    ("narrow", "zombie_flow", "calm", 1),
    ("slow", "slow_flow", "calm", None),
    ("nobody", "zombie_flow", "nobody", None),
):
    flow.from_source(sys.argv[1], f"{file}.py:run").deploy(
        name, work_pool_name=pool, concurrency_limit=limit, print_next_steps=False, build=False, push=False
    )
"""
ENDS = ("Completed", "Failed", "GateRejected", "GateUndecided", "Skipped", "Suspended")
LIMIT_SECONDS = 120
ASKS_SECONDS = 45
"""A run that waits for its deployment's slot, and not for one of the pool, asks every 20 s; the one that is Cancelling holds the former."""
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
            others: dict[str, str] = {}
            for how in ENDS:  # one after the other: many at once lock SQLite on a busy machine
                others[how] = _start(server, "calm", place, how)
                _reach(server, others)
            others["Cancelled"] = _start(server, "calm", place, "Completed", seconds=900)
            others["Running"] = _start(server, "narrow", place, "Completed", seconds=900)
            _pid(place, others["Cancelled"])
            server.post(f"/flow_runs/{others['Cancelled']}/set_state", {"state": {"type": "CANCELLING"}})
            _pid(place, others["Running"])
            others["AwaitingConcurrencySlot"] = _start(server, "narrow", place, "Completed")
            others["Late"] = _start(server, "nobody", place, "Completed")
            with _worker(server, "doomed", place) as worker:
                dead = _start(server, "doomed", place, "Completed", seconds=900)
                child = _pid(place, dead)
                queued = _start(server, "doomed", place, "Completed")
                wait_for(lambda: server.state(dead)["name"] == "Running", 60)
                _reach(server, others)
                assert server.state(queued)["type"] != "RUNNING"
                os.kill(worker.pid, signal.SIGKILL)
                os.kill(child, signal.SIGKILL)
                killed = time.monotonic()
            slow = _start(server, "slow", place, "Completed")
            with _worker(server, "doomed", place):  # as a supervisor does
                running_said = _freed(server, dead, queued, killed)
            with _worker(server, "unborn", place) as one, _worker(server, "given-up", place) as other:
                unborn = {name: _start(server, name, place, "Completed") for name in ("unborn", "given-up")}
                children = [_starting(server, run) for run in unborn.values()]
                for worker in (one, other):
                    os.kill(worker.pid, signal.SIGKILL)
                for each in children:
                    each.kill()
                killed_starting = time.monotonic()
            assert {server.state(run)["name"] for run in unborn.values()} == {"Submitting"}
            server.post(f"/flow_runs/{unborn['given-up']}/set_state", {"state": {"type": "CANCELLING"}})
            behind = {name: _start(server, name, place, "Completed") for name in unborn}
            (place / "wake").touch()
            with (
                _worker(server, "unborn", place),
                _worker(server, "given-up", place),
                ThreadPoolExecutor() as beside,
            ):
                found = [
                    beside.submit(_freed, server, unborn[name], behind[name], killed_starting, state)
                    for name, state in (("unborn", "Crashed"), ("given-up", "Cancelled"))
                ]
                starting_said, given_up_said = (each.result() for each in found)
            assert "Not begun" in server.state(unborn["unborn"])["message"]
            time.sleep(max(0, LEFT_ALONE_SECONDS - (time.monotonic() - killed)))
            assert {how: server.state(run)["name"] for how, run in others.items()} == {how: how for how in others}
            assert server.state(slow)["name"] == "Completed"
            assert "CRASHED" not in {state["type"] for state in server.get(f"/flow_run_states/?flow_run_id={slow}")}
    return (
        f"worker and child killed: {running_said}; before the child began: {starting_said}; "
        f"and cancelled after that: {given_up_said}"
    )


def _reach(server: RunningServer, runs: dict[str, str]) -> None:
    for how, run in runs.items():
        wait_for(lambda run=run, how=how: server.state(run)["name"] == how, 180)


def _freed(server: RunningServer, dead: str, queued: str, killed: float, state: str = "Crashed") -> str:
    """Waits until the dead run has ended and the one behind it runs, in time."""
    wait_for(lambda: server.state(dead)["name"] == state, LIMIT_SECONDS - (time.monotonic() - killed))
    ended = time.monotonic() - killed
    assert "docs/operations.md#crashed" in server.state(dead)["message"]
    asks_seconds = ASKS_SECONDS if state == "Cancelled" else 0
    wait_for(lambda: server.state(queued)["type"] in {"RUNNING", "COMPLETED"}, LIMIT_SECONDS + asks_seconds - ended)
    freed = time.monotonic() - killed
    wait_for(lambda: server.state(queued)["name"] == "Completed", 60)
    return f"{state} after {ended:.0f} s, the next run started after {freed:.0f} s"


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
        starting = _stopped_as_the_box_does(server, place)
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
        wait_for(lambda: server.state(starting)["type"] == "CRASHED", 240 - found)
        found_starting = time.monotonic() - up
        assert server.state(living)["name"] in {"Running", "Completed"}
        wait_for(lambda: server.state(living)["name"] == "Completed", 240)
        assert server.state(waiting)["name"] == "Suspended"
        (place / "wake").touch()
        following = _start(server, "unborn", place, "Completed")
        with _worker(server, "unborn", place):
            wait_for(lambda: server.state(following)["name"] == "Completed", 60)
    return (
        f"{said.strip()}; the run that died in the outage was Crashed {found:.0f} s after the new start, "
        f"the one that was starting as its worker was stopped after {found_starting:.0f} s"
    )


def _stopped_as_the_box_does(server: RunningServer, place: Path) -> str:
    """A run that is starting as `make down` stops runs first, their worker paused, and then the worker."""
    with _worker(server, "unborn", place) as worker:
        run = _start(server, "unborn", place, "Completed")
        child = _starting(server, run)
        worker.send_signal(signal.SIGSTOP)
        child.terminate()
        psutil.wait_procs([child], timeout=20)
        worker.send_signal(signal.SIGCONT)
        worker.terminate()
        worker.wait(timeout=30)
    assert server.state(run)["type"] == "PENDING"
    return run


def _starting(server: RunningServer, run: str) -> psutil.Process:
    """The process of a run that a worker has just started: it still imports."""

    def find() -> psutil.Process | None:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("PREFECT__FLOW_RUN_ID") == run:
                    return process
        return None

    process = wait_for(find, 120)
    assert server.state(run)["name"] == "Submitting"
    return process


def _prepare(server: RunningServer, place: Path) -> None:
    (place / "zombie_flow.py").write_text(FLOW)
    (place / "slow_flow.py").write_text(SLOW)
    (place / "asleep_flow.py").write_text(ASLEEP)
    for name in ("doomed", "unborn", "given-up"):
        make_pool(server, name, 1)
    for name in ("calm", "nobody"):
        make_pool(server, name, 20)
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
