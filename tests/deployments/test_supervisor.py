"""The supervisor with real little processes: it keeps them, ends them in order, and however it ends itself leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from deployments.box.commands import down
from deployments.box.leftovers import end_all, end_leftovers, marked
from deployments.box.places import Kept, Places, State
from potstill.owner import this_process
from potstill.subprocesses import process_started_at
from tests.box import eventually, is_alive

pytestmark = pytest.mark.flow

SUPERVISOR = """
import sys
from pathlib import Path
from deployments.box.config import Box
from deployments.box.places import Places
from deployments.box.supervisor import supervise
from deployments.box.watched import Process

def sh(name, command, **fields):
    return Process(name, ("/bin/sh", "-c", command), **fields)

home = Path(sys.argv[1])
places = Places(home)
places.make()
run = f"trap 'sleep 0.5; date +%s.%N > {home}/saved; exit' TERM; touch {home}/running; while :; do sleep 0.1; done"
listed = [
    sh("server", f"trap 'date +%s.%N > {home}/server-stopped; exit' TERM; while :; do sleep 0.1; done", stops=2),
    sh("worker", f"export PREFECT__FLOW_RUN_ID=r; setsid sh -c \\"{run}\\" & trap '' TERM; wait", after=("server",), stops=0),
    sh("dies", "echo no room; exit 3"),
    *eval(sys.argv[2]),
]
with places.lock():
    supervise(places, listed, Box(stop_seconds=20), "box.yaml")
"""


class Supervised:
    """Keeps the processes of the script, and `more`: what its text in Python means there. What it says goes into `log`."""

    def __init__(self, home: Path, more: str = "()", log: Path = Path(os.devnull)) -> None:
        self.places = Places(home)
        with log.open("ab") as file:
            self.process = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(home), more], stderr=file)
        eventually(lambda: self.kept("worker").condition == "up" and (home / "running").exists())
        self.mark = self.state.mark

    @property
    def state(self):
        return eventually(self.places.read_state)

    def kept(self, name):
        return next((one for one in self.state.processes if one.name == name), Kept(name=name, condition="waiting"))

    def keeper(self):
        return next(process for process in marked(self.mark) if "potstill.keeper" in process.cmdline())


@pytest.fixture
def supervise(tmp_path):
    made = []

    def make(**given):
        made.append(Supervised(tmp_path, **given))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()
        one.process.wait()
        end_all(lambda one=one: marked(one.mark), grace_seconds=0)


@pytest.fixture
def supervised(supervise):
    return supervise()


def shells(mark):
    """Their pids."""
    found = set()
    for process in marked(mark):
        with suppress(psutil.Error):
            found |= {process.pid} if process.name() == "sh" else set()
    return found


def await_another(supervised, name):
    """Kill a process, and see that it is kept alive."""
    before = supervised.kept(name)
    os.kill(before.pid, signal.SIGKILL)
    eventually(lambda: supervised.kept(name).pid not in {None, before.pid})


def test_what_is_killed_is_back_within_seconds_and_what_dies_at_once_is_said_to_be_failing(supervised):
    before = supervised.kept("server")
    killed = time.monotonic()
    os.kill(before.pid, signal.SIGKILL)
    eventually(lambda: supervised.kept("server").pid not in {None, before.pid})
    assert time.monotonic() - killed < 5
    assert supervised.kept("server").num_restarts == 1
    assert eventually(lambda: supervised.kept("dies").condition == "failing")
    assert supervised.kept("dies").remark == "ended with status 3: no room"


def test_what_goes_wrong_as_one_is_looked_after_is_said_once_and_the_others_go_on(supervise, tmp_path):
    log = tmp_path / "said"
    supervised = supervise(more='[sh("odd", "sleep 60", answers=lambda _: 1 / 0)]', log=log)
    await_another(supervised, "server")
    await_another(supervised, "server")
    assert log.read_text().count("odd: cannot be looked after: ZeroDivisionError: division by zero\n") == 1
    supervised.process.terminate()
    assert supervised.process.wait(timeout=30) == 0


def test_a_disk_too_full_for_its_own_log_ends_nothing(supervise):
    supervised = supervise(log=Path("/dev/full"))
    await_another(supervised, "server")


def test_a_store_that_hangs_keeps_it_from_nothing_else(supervise):
    supervised = supervise(more='[sh("gateway", "sleep 60", lacks=__import__("threading").Event().wait)]')
    await_another(supervised, "server")
    assert supervised.kept("gateway").condition == "waiting"
    supervised.process.terminate()
    assert supervised.process.wait(timeout=30) == 0


def test_stopped_it_lets_runs_save_before_the_server_goes_and_leaves_nothing(supervised, tmp_path):
    supervised.process.terminate()
    assert supervised.process.wait(timeout=30) == 0
    assert float((tmp_path / "saved").read_text()) < float((tmp_path / "server-stopped").read_text())
    assert marked(supervised.mark) == []
    assert supervised.places.read_state() is None


def test_killed_it_leaves_nothing_either(supervised, tmp_path):
    supervised.process.kill()
    supervised.process.wait()
    eventually(lambda: marked(supervised.mark) == [], seconds=20)
    assert (tmp_path / "saved").exists(), "the run was told, and could save"


def test_killed_with_its_keeper_what_it_left_is_found_and_ended_and_nobody_elses_process(supervised):
    supervised.keeper().kill()
    supervised.process.kill()
    supervised.process.wait()
    left = shells(supervised.mark)
    time.sleep(0.5)
    left &= shells(supervised.mark)  # not what one forks for its `sleep 0.1`
    assert len(left) >= 3
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        reused = Kept(name="old", condition="up", pid=stranger.pid, started_at=time.time() - 3600)
        state = supervised.state.model_copy(update={"processes": [*supervised.state.processes, reused]})
        assert end_leftovers(state, grace_seconds=5) >= len(left)
        assert marked(supervised.mark) == []
        assert is_alive(stranger.pid), "its pid was written down, but it started at another time"
    finally:
        stranger.kill()
        stranger.wait()


def test_pid_and_start_time_find_a_process_without_the_mark(tmp_path):
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        kept = Kept(name="one", condition="up", pid=child.pid, started_at=process_started_at(child.pid))
        state = {"mark": "none", "config": "", "ports": {}, "processes": [kept.model_dump()]}
        count = end_leftovers(State.model_validate({**state, "supervisor": this_process().model_dump()}), 2)
        assert count == 1
    finally:
        child.kill()
        assert child.wait() == -signal.SIGTERM


def test_what_was_written_before_a_reboot_names_nobody(tmp_path):
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        now = {"pid": stranger.pid, "started_at": process_started_at(stranger.pid)}
        then = this_process().model_copy(update={"boot_id": "an earlier one", **now})
        kept = Kept(name="old", condition="up", **now)
        places = Places(tmp_path)
        places.make()
        places.write_state(State(supervisor=then, mark="none", config="", ports={}, processes=[kept]))
        assert down(tmp_path) == 0
        assert places.read_state() is None
        assert is_alive(stranger.pid)
    finally:
        stranger.kill()
        stranger.wait()


def test_only_one_supervisor_lives_below_a_home(supervised):
    assert supervised.places.is_locked()
    supervised.process.kill()
    supervised.process.wait()
    assert not supervised.places.is_locked()


def test_the_status_of_a_box_whose_supervisor_is_gone_says_so(supervised, tmp_path):
    command = [sys.executable, "-m", "deployments", "status", "--json", "--home", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 1
    assert {one["name"] for one in json.loads(shown.stdout)["processes"]} == {"server", "worker", "dies"}
    supervised.keeper().kill()
    supervised.process.kill()
    supervised.process.wait()
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 3
    assert json.loads(shown.stdout) == {"up": False, "left": 2}


def test_up_says_what_is_failing_and_where_to_look(supervised, tmp_path):
    command = [sys.executable, "-m", "deployments", "up", "--home", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert "a box is up already" in said.stdout
    assert "not up: dies; the supervisor goes on trying: see" in said.stderr
