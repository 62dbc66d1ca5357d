"""What the first process of a worker's container does when the container is stopped; without an engine, by its signal alone."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.docker.worker import RUN_SECONDS, WORKER_SECONDS
from tests.box import eventually
from tests.prefect_server import ROOT

pytestmark = pytest.mark.flow

WORKER = """
import os, signal, subprocess, sys
from pathlib import Path

home = Path(sys.argv[1])
saving = f"trap 'sleep 0.5; touch {home}/saved; exit' TERM; touch {home}/running; while :; do sleep 0.1; done"
run = subprocess.Popen(["sh", "-c", saving], env=os.environ | {"PREFECT__FLOW_RUN_ID": "r"}, start_new_session=True)

def end(*_):
    run.kill()  # as Prefect's does at times
    (home / "ended").touch()
    sys.exit()

signal.signal(signal.SIGTERM, end)
while not (home / "die").exists():
    signal.sigtimedwait([], 0.005)
    if run.poll() is not None:
        (home / "another").touch()
sys.exit(3)
"""


@pytest.fixture
def contained(tmp_path: Path):
    """With a worker that kills its runs when it is told to end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments.docker.worker", sys.executable, "-c", WORKER, str(tmp_path)], cwd=ROOT
    )
    eventually((tmp_path / "running").exists)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_lets_the_runs_save_and_only_then_ends_the_worker(contained, tmp_path, number) -> None:
    contained.send_signal(number)
    assert contained.wait(30) == 0
    assert (tmp_path / "saved").stat().st_mtime <= (tmp_path / "ended").stat().st_mtime
    assert not (tmp_path / "another").exists(), "with room for a run, it would have started the next one"


def test_where_the_worker_ends_by_itself_the_runs_may_save_too_and_its_status_is_told(contained, tmp_path) -> None:
    (tmp_path / "die").touch()
    assert contained.wait(30) == 3
    assert (tmp_path / "saved").exists()


def test_the_time_that_runs_have_is_within_that_of_the_container() -> None:
    compose = (ROOT / "deployments" / "compose.yaml").read_text()
    assert (
        compose.count("stop_grace_period: 60s")
        == compose.count("deployments.docker.worker, python, -m, deployments.worker")
        == 2
    )
    assert RUN_SECONDS + WORKER_SECONDS < 60
