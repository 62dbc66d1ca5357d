"""What a box has running, found by its mark in the environment, and its end. A mark is made once and names one box at one start."""

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

from deployments.box.places import State
from potstill.keeper import MARK
from potstill.subprocesses import end_process

FLOW_RUN = "PREFECT__FLOW_RUN_ID"
"""What Prefect puts into the environment of a run's process."""
LEFTOVER_SECONDS = 10.0
"""How long what a dead supervisor left may take to end."""


def marked(mark: str) -> list[psutil.Process]:
    """Every process of this user, but this one, that bears the mark and is no zombie."""
    return [found for found in psutil.process_iter() if found.pid != os.getpid() and _variable(found, MARK) == mark]


def runs(mark: str) -> list[psutil.Process]:
    """The processes of runs; not what they have started themselves, which they end in their own way."""
    found = {process: _variable(process, FLOW_RUN) for process in marked(mark)}
    return [
        process for process, run in found.items() if run is not None and _variable(_parent(process), FLOW_RUN) != run
    ]


def end_runs(mark: str, grace_seconds: float) -> int:
    """End the runs, which may take their time to save. Their workers stand still meanwhile, or would start others."""
    return end_all(lambda: runs(mark), grace_seconds)


def end_all(find: Callable[[], Iterable[psutil.Process]], grace_seconds: float) -> int:
    """SIGTERM to all that is found, SIGKILL to what is still found after the grace; how many there were."""
    told: set[psutil.Process] = set()
    deadline = time.monotonic() + grace_seconds
    while (left := set(find())) and time.monotonic() < deadline:
        _signal(left - told, signal.SIGTERM)
        told |= left
        time.sleep(0.1)
    while left and time.monotonic() < deadline + LEFTOVER_SECONDS:
        _signal(left, signal.SIGKILL)
        told |= left
        time.sleep(0.1)
        left = set(find())
    return len(told)


def end_leftovers(state: State, grace_seconds: float = LEFTOVER_SECONDS) -> int:
    """End whatever a supervisor that is gone has left, and say how many processes that were.

    The mark finds all; pid and start time find what was started by it, also where an environment cannot be read. Of
    another boot or container they would name somebody else.
    """
    count = end_all(lambda: marked(state.mark), grace_seconds)
    for kept in state.processes if state.supervisor.is_on_this_machine() else ():
        if kept.pid is not None and kept.started_at is not None:
            count += end_process(kept.pid, kept.started_at, grace_seconds)
    return count


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)  # psutil looks at the start time first: a later process with this pid is spared


def _parent(process: psutil.Process) -> psutil.Process | None:
    with suppress(psutil.Error):
        return process.parent()
    return None


def _variable(process: psutil.Process | None, name: str) -> str | None:
    if process is None:
        return None
    try:
        return process.environ().get(name) if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:  # gone, or another user's
        return None
