"""Keeps the processes of the box alive until a signal ends it, and then ends them all.

However it ends itself, its keeper ends what it has started: both bear the same mark.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from filelock import Timeout

from deployments.box.config import Box, load_box
from deployments.box.environment import enter, environments, write_shell_file
from deployments.box.leftovers import end_leftovers, end_runs
from deployments.box.places import Places, State
from deployments.box.ports import check_ports
from deployments.box.processes import WORKERS_STOP, processes
from deployments.box.watched import Process, Watched, bound_log
from potstill.errors import UsageError
from potstill.keeper import MARK, start_keeper
from potstill.owner import this_process

TICK_SECONDS = 0.2
LOCK_SECONDS = 2.0
"""Who only looks whether a supervisor lives holds its lock for a moment."""
BOUND_SECONDS = 30.0
"""How often the logs are looked at."""
STOP_SECONDS = 10.0
"""How long a process may take to end; runs have their own time before."""


def run_box(home: Path, config: Path) -> int:
    """Be the supervisor of this home, until SIGTERM or SIGINT.

    Errors: `UsageError` where the config is wrong, a port is taken, or another supervisor is at work.
    """
    box = load_box(config)
    places = Places(home)
    places.make()
    lock = places.lock()
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise UsageError(f"a box is up below {home}: `make status` shows it, `make down` ends it") from None
    with lock:
        if (left := places.read_state()) is not None and (count := end_leftovers(left)):
            say(f"ended {count} processes that an earlier supervisor left")
        check_ports(box, str(config))
        found = environments(box, places, enter(places))
        write_shell_file(places, found)
        supervise(places, processes(box, places, found, str(config)), box, str(config))
    return 0


def supervise(places: Places, listed: Sequence[Process], box: Box, config: str) -> None:
    """Keep processes alive until a signal comes; the caller holds the lock."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    keeper = start_keeper()
    watched = [Watched(process, places.logs / f"{process.name}.log") for process in listed]
    state = State(supervisor=this_process(), mark=os.environ[MARK], config=config, ports=box.ports, processes=[])
    places.write_state(state)
    try:
        _keep(places, watched, state, stop)
    finally:
        _stop(places, watched, state, box.stop_seconds)
        keeper.stop()
        say(f"stopped; {end_leftovers(state, STOP_SECONDS)} processes were left")
        places.forget_state()


def say(text: str) -> None:
    """A line in the supervisor's log; none where its disk is full."""
    with suppress(OSError):
        print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}", file=sys.stderr, flush=True)


def _keep(places: Places, watched: Sequence[Watched], state: State, stop: threading.Event) -> None:
    said: dict[str, str] = {}
    last_look = time.monotonic()
    while not stop.wait(TICK_SECONDS):
        ready = {one.process.name for one in watched if one.is_ready}
        for one in watched:
            with _sparing_others(one.process.name, said):
                one.tick(may_start=ready.issuperset(one.process.after))
        state = _write(places, watched, state, said)
        if time.monotonic() - last_look > BOUND_SECONDS:
            last_look = time.monotonic()
            for one in watched:
                one.bound_log()
            bound_log(places.supervisor_log)


@contextmanager
def _sparing_others(name: str, said: dict[str, str]) -> Iterator[None]:
    """Whatever goes wrong as one process is looked after is said once, and ends neither the box nor its other processes."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - nobody has foreseen it, and runs of hours hang on the box
        line = f"{name}: cannot be looked after: {type(error).__name__}: {error}"
        if said.get(f"{name}, trouble") != line:
            say(line)
            said[f"{name}, trouble"] = line


def _write(places: Places, watched: Sequence[Watched], state: State, said: dict[str, str]) -> State:
    """Write the state where it has changed, and say in the log what has."""
    kept = [one.kept() for one in watched]
    if kept == state.processes:
        return state
    for one in kept:
        line = f"{one.name}: {one.condition}{f' ({one.remark})' if one.remark else ''}"
        if said.get(one.name) != line:
            say(line)
            said[one.name] = line
    state = state.model_copy(update={"processes": kept})
    try:
        places.write_state(state)
    except OSError as error:  # a full disk must not end what runs
        say(f"the state cannot be written: {error}")
    return state


def _stop(places: Places, watched: Sequence[Watched], state: State, run_seconds: float) -> None:
    """Runs first, which may take their time to save, then their workers; the server that they report to last."""
    say("stopping")
    with suppress(OSError):
        kept = [one.kept() for one in watched]
        places.write_state(state.model_copy(update={"processes": kept, "is_stopping": True}))

    def order(one: Watched) -> int:
        return one.process.stops

    for stage, group in groupby(sorted(watched, key=order), key=order):
        members = list(group)
        if stage == WORKERS_STOP:
            for one in members:
                one.pause()  # told to end, a worker may kill its runs at once; left alone, it would start others
            end_runs(state.mark, run_seconds)
        with ThreadPoolExecutor(len(members)) as threads:
            for one in members:
                threads.submit(one.stop, STOP_SECONDS)
