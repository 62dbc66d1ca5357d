"""`up`, `down` and `status`: what a person, `make` or systemd calls. They find the supervisor by what it has written."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import orjson
from rich.console import Console

from deployments.box.config import HOST, ROOT, load_box
from deployments.box.environment import auth_string
from deployments.box.leftovers import end_leftovers
from deployments.box.places import Kept, Places, State
from deployments.box.ports import check_ports, is_free
from deployments.box.processes import POOL, SERVER, answers, has_heard
from deployments.box.table import show_state
from deployments.docker.polls import SILENT_SECONDS
from potstill.errors import OrchestratorError, SubprocessError, UsageError
from potstill.prefect_api import PrefectApi
from potstill.subprocesses import process_started_at

UP_SECONDS = 300.0
"""How long the box may take to come up; a first start makes the database."""
DOWN_SECONDS = 60.0
"""What the supervisor may take beside the time that runs have."""
STARTING_SECONDS = 15.0
"""How long a supervisor may take from its lock to its first word."""
TICK_SECONDS = 0.2
ALL_UP, SOME_DOWN, NOT_UP = 0, 1, 3


def up(home: Path, config: Path, wait_seconds: float = UP_SECONDS) -> int:
    """Start the supervisor in a session of its own and wait until all answers; where it is up already, say so.

    Errors: `UsageError` for a wrong config or a port that is taken; `SubprocessError` where it does not come up.
    """
    console, places = Console(), Places(home)
    state = _living(places)
    if state is None:
        box = load_box(config)
        if (left := places.read_state()) is not None and (count := end_leftovers(left)):
            console.print(f"ended {count} processes that an earlier supervisor left")
        check_ports(box, str(config))
        places.make()
        places.forget_state()
        launched = _launch(places, config)
        state = _await_settled(places, lambda: launched.poll() is not None, wait_seconds)
    else:
        console.print("a box is up already")
        state = _await_settled(places, state.supervisor.is_dead, wait_seconds)
    show_state(state, places, console)
    if not state.is_settled:
        late = ", ".join(kept.name for kept in state.processes if kept.condition not in {"up", "done", "off"})
        raise SubprocessError(f"not up: {late}; the supervisor goes on trying: see {places.logs}, or make down")
    return 0


def down(home: Path) -> int:
    """End the supervisor with all that it keeps, then whatever is left; 0 also where nothing was up.

    Errors: `SubprocessError` where a port is still in use afterwards; `UsageError` for the box of another machine.
    """
    places = Places(home)
    state = _living(places) or places.read_state()
    if state is None:
        print("nothing is up")
        return 0
    patience = DOWN_SECONDS + _stop_seconds(state)
    if state.supervisor.is_alive():
        with suppress(ProcessLookupError):
            os.kill(state.supervisor.pid, signal.SIGTERM)
        _await(state.supervisor.is_dead, patience)
    if state.supervisor.is_alive():
        with suppress(ProcessLookupError):
            os.kill(state.supervisor.pid, signal.SIGKILL)
        _await(state.supervisor.is_dead, TICK_SECONDS * 10)
    count = end_leftovers(state)
    if not _await(lambda: all(map(is_free, state.ports.values())), TICK_SECONDS * 25):
        taken = [f"{name} {port}" for name, port in state.ports.items() if not is_free(port)]
        raise SubprocessError(f"still in use on {HOST}: {', '.join(taken)}: another program has them now")
    places.forget_state()
    print(f"down{f'; ended {count} processes that were left' if count else ''}")
    return 0


def status(home: Path, *, as_json: bool) -> int:
    """Show what runs: 0 all is up, 1 something is not, 3 there is no box."""
    places = Places(home)
    state = places.read_state()
    if state is None or not places.is_locked():
        left = 0 if state is None else sum(kept.condition == "up" for kept in map(_seen, state.processes))
        said = f"not up; a supervisor that is gone left {left} processes: make down ends them" if left else "not up"
        print(orjson.dumps({"up": False, "left": left}).decode() if as_json else said)
        return NOT_UP
    state = state.model_copy(update={"processes": _heard(list(map(_seen, state.processes)), state, places)})
    if as_json:
        print(orjson.dumps({"up": state.is_settled, **state.model_dump(exclude={"mark"})}).decode())
    else:
        show_state(state, places, Console())
    return ALL_UP if state.is_settled and not state.is_stopping else SOME_DOWN


def _seen(kept: Kept) -> Kept:
    """What is written, corrected by what is seen now."""
    if kept.condition != "up":
        return kept
    if kept.pid is None or process_started_at(kept.pid) is None:
        return kept.model_copy(update={"condition": "restarting", "remark": "has died"})
    if (kept.address or "").startswith("http") and not answers(kept.address or ""):
        return kept.model_copy(update={"condition": "starting", "remark": "runs, but does not answer"})
    return kept


def _heard(listed: list[Kept], state: State, places: Places) -> list[Kept]:
    """The same, workers corrected by what the server has heard of them: one that lives may have stopped to poll."""
    if not any(kept.name == SERVER and kept.condition == "up" for kept in listed) or not places.auth.exists():
        return listed
    api = PrefectApi(f"http://{HOST}:{state.ports[SERVER]}/api", auth_string(places.auth))
    return [_worker_heard(kept, api) for kept in listed]


def _worker_heard(kept: Kept, api: PrefectApi) -> Kept:
    kind, _, pool = (kept.address or "").partition(" ")
    if kind != POOL or kept.condition != "up":
        return kept
    with suppress(OrchestratorError):  # a server that is busy says nothing of its workers
        if not has_heard(api, pool, kept.name, time.time() - SILENT_SECONDS):
            remark = f"runs, but has been silent for {SILENT_SECONDS} s: kill -9 {kept.pid}, and it is started again"
            return kept.model_copy(update={"condition": "starting", "remark": remark})
    return kept


def _living(places: Places) -> State | None:
    """What the supervisor that runs now has written; None where none runs."""
    if not places.is_locked():
        return None
    _await(lambda: places.read_state() is not None, STARTING_SECONDS)
    state = places.read_state()
    if state is None or not state.supervisor.is_on_this_machine():
        host = state.supervisor.host if state is not None else "another machine or container"
        raise UsageError(f"the box below {places.home} was started on {host}: go there, or use another POTSTILL_HOME")
    return state


def _launch(places: Places, config: Path) -> "subprocess.Popen[bytes]":
    with places.supervisor_log.open("ab") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "deployments",
                "up",
                "--foreground",
                "--home",
                str(places.home),
                "--config",
                str(config),
            ],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _await_settled(places: Places, ended: Callable[[], bool], seconds: float) -> State:
    deadline = time.monotonic() + seconds
    while True:
        if ended():
            last = places.supervisor_log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise SubprocessError(f"the supervisor has ended; {places.supervisor_log} ends with: {''.join(last)}")
        state = places.read_state()
        is_over = time.monotonic() > deadline or (state is not None and state.is_failing)
        if state is not None and state.processes and (state.is_settled or is_over):
            return state
        if is_over:
            raise SubprocessError(f"the supervisor says nothing after {seconds:.0f} s: see {places.supervisor_log}")
        time.sleep(TICK_SECONDS)


def _stop_seconds(state: State) -> float:
    with suppress(UsageError):
        return load_box(Path(state.config)).stop_seconds
    return 0


def _await(look: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(TICK_SECONDS)
    return found
