"""The keeper: what a run started ends with it, however it ends and whatever it does about signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from potstill.keeper import MARK

pytestmark = pytest.mark.flow

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
RUN = f"""
import subprocess, sys, time
from potstill.keeper import start_keeper
keeper = start_keeper()
started = [
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True),
    subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], start_new_session=True, stdout=subprocess.PIPE),
]
started[1].stdout.readline()
print(keeper.pid, *(process.pid for process in started), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def run() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def bystander() -> Iterator[psutil.Popen]:
    """A process of another run."""
    process = psutil.Popen(["sleep", "600"], env={**os.environ, MARK: "another"})
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "at its own end"])
def test_all_that_a_run_started_ends_with_it(
    run: "subprocess.Popen[str]", bystander: psutil.Popen, *, is_killed: bool
) -> None:
    assert run.stdout is not None
    ours = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]
    assert len(ours) == 3
    if is_killed:
        run.send_signal(signal.SIGKILL)
    else:
        assert run.stdin is not None
        run.stdin.close()
    assert run.wait() == (-signal.SIGKILL if is_killed else 0)
    deadline = time.monotonic() + 15
    while any(is_at_work(process) for process in ours):
        assert time.monotonic() < deadline, ours
        time.sleep(0.05)
    assert is_at_work(bystander)


def is_at_work(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
