"""What `make status` says beside what the supervisor wrote: a server that answers as it is told, and real processes."""

import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deployments.box.commands import ALL_UP, SOME_DOWN, status
from deployments.box.places import Kept, Places, State
from deployments.docker.polls import SILENT_SECONDS
from potstill.owner import this_process
from potstill.subprocesses import process_started_at
from tests.recording_server import Answer, RecordingServer

FOUND = "/api/work_pools/cpu/workers/filter"


def heard(seconds_ago: float, name: str = "cpu-1") -> Answer:
    at = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    return Answer(200, [{"name": name, "last_heartbeat_time": at.isoformat()}])


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(default=Answer(200)) as server:
        yield server


@pytest.fixture
def home(tmp_path: Path, server: RecordingServer) -> Iterator[Path]:
    """A box that is up, as its supervisor has written: a server and a worker that live."""
    worker = subprocess.Popen(["sleep", "300"])
    places = Places(tmp_path)
    places.make()
    places.auth.write_text("potstill:a-password\n")
    processes = [
        Kept(name="server", condition="up", pid=os.getpid(), address=server.origin),
        Kept(name="setup", condition="done"),
        Kept(name="cpu-1", condition="up", pid=worker.pid, address="pool cpu"),
    ]
    ports = {"server": int(server.origin.rpartition(":")[2])}
    state = State(supervisor=this_process(), mark="m", config="box.yaml", ports=ports, processes=processes)
    with places.lock():
        places.write_state(state)
        yield tmp_path
    worker.kill()
    worker.wait()


def look(home: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = status(home, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    return code, {kept["name"]: kept for kept in shown["processes"]}


def test_a_worker_that_lives_but_is_silent_is_not_up_and_the_remark_says_how_to_get_it_back(
    home: Path, server: RecordingServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers[FOUND] = heard(SILENT_SECONDS - 60)
    code, shown = look(home, capsys)
    assert (code, shown["cpu-1"]["condition"]) == (ALL_UP, "up")
    server.answers[FOUND] = heard(SILENT_SECONDS + 1)
    code, shown = look(home, capsys)
    worker = shown["cpu-1"]
    assert (code, worker["condition"]) == (SOME_DOWN, "starting")
    assert f"silent for {SILENT_SECONDS} s: kill -9 {worker['pid']}" in worker["remark"]
    assert process_started_at(worker["pid"]), "it is the user who kills it"
    server.answers[FOUND] = heard(1, name="cpu-2")
    assert look(home, capsys)[0] == SOME_DOWN, "another worker's word is not its own"
    assert {seen.headers["authorization"][:6] for seen in server.seen if seen.method == "POST"} == {"Basic "}


@pytest.mark.parametrize("busy", [{FOUND: Answer(503)}, {"/": Answer(500)}])
def test_of_a_worker_whose_server_cannot_say_nothing_is_said(
    home: Path, server: RecordingServer, busy: dict[str, Answer], capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers.update({FOUND: heard(SILENT_SECONDS + 1)} | busy)
    assert look(home, capsys)[1]["cpu-1"]["condition"] == "up"
