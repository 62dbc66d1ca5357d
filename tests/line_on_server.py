"""The whole line on a real server, as `make up` has it without its supervisor: pools, deployments, automations, workers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import psutil

from tests.prefect_server import AUTH, RunningServer, prefect_server, running, wait_for

ROOT = Path(__file__).parents[1]
RUN_SECONDS = 240
GOING_ON = {"SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "PAUSED"}


class Line(NamedTuple):
    server: RunningServer
    place: Path
    stack: ExitStack
    workers: dict[str, "subprocess.Popen[bytes]"]

    @property
    def home(self) -> Path:
        return self.place / "potstill"

    def start_worker(self, pool: str, **settings: str) -> None:
        """A worker of a pool, ended with the line; a dead one of that pool is replaced. It may have settings of its own."""
        command = (
            sys.executable,
            "-m",
            "deployments.worker",
            "--pool",
            pool,
            "--name",
            f"{pool}-{time.monotonic_ns()}",
        )
        log = self.place / f"worker-{pool}.log"
        self.workers[pool] = self.stack.enter_context(running(command, self.server.env | settings, log))

    def restart_server(self, away_seconds: float) -> None:
        """Kill it, and start it again as `make up` does, which first gives those runs time that could not be heard."""
        os.kill(self.server.pid, signal.SIGKILL)
        time.sleep(away_seconds)
        self.server.call("-m", "deployments.automations", "--before-server")
        port = str(urlsplit(self.server.url).port)
        self.stack.enter_context(prefect_server(self.place, port=port, **self.server.env))

    def deployment(self, name: str) -> dict[str, Any]:
        return self.server.get(f"/deployments/name/{name}")

    def start(self, name: str, recipe: dict[str, Any] | None = None, **what: Any) -> dict[str, Any]:
        """Create a run as the UI's form does: through the API, parameters as JSON."""
        parameters = {} if recipe is None else {"recipe": json.loads(json.dumps(recipe))}
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}} | what
        return self.server.post(f"/deployments/{self.deployment(name)['id']}/create_flow_run", body)

    def run(self, name: str, recipe: dict[str, Any] | None = None, *, seconds: float = RUN_SECONDS) -> dict[str, Any]:
        """The state in which a run ends."""
        return self.wait_for_end(self.start(name, recipe), seconds)

    def wait_for_end(self, run: dict[str, Any], seconds: float = RUN_SECONDS) -> dict[str, Any]:
        return self.wait_for_state(run, lambda state: state["type"] not in GOING_ON, seconds)

    def wait_for_state(self, run: dict[str, Any], is_it: Any, seconds: float = RUN_SECONDS) -> dict[str, Any]:
        state: dict[str, Any] = {}

        def look() -> bool:
            nonlocal state
            state = self.server.state(run["id"])
            return is_it(state)

        try:
            wait_for(look, seconds)
        except AssertionError:
            raise AssertionError(f"{run['name']} is still {state.get('name')}: {state.get('message')}") from None
        return state

    def cancel(self, run: dict[str, Any]) -> None:
        """As the button in the UI does."""
        self.server.post(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})

    def resume(self, run: dict[str, Any], word: dict[str, Any], status: str = "ACCEPT") -> None:
        """As the form on the run's page does, pressed again where SQLite was busy. Prefect keeps the form's schema an instant
        after it has suspended the run."""
        url, body = f"{self.server.url}/flow_runs/{run['id']}/resume", {"run_input": word}
        wait_for(lambda: httpx.post(url, json=body, auth=AUTH, timeout=30).json().get("status") == status, 30)

    def children(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        found = self.server.find("flow_runs", flow_runs={"parent_flow_run_id": {"any_": [run["id"]]}})
        return sorted(found, key=lambda child: child["created"])

    def process_of(self, run: dict[str, Any]) -> psutil.Process:
        """The process in which a run's flow lives, once it has one."""
        return wait_for(lambda: next(self._processes(run["id"]), None), RUN_SECONDS)

    def reports(self, run: dict[str, Any]) -> dict[str, str]:
        """The UI reports of a run by their keys: the text of each."""
        found = self.server.find("artifacts", flow_runs={"id": {"any_": [run["id"]]}})
        return {report["key"]: str(report["data"]) for report in found if report["key"]}

    def _processes(self, run_id: str) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                command = process.cmdline()
            except psutil.Error:
                continue
            if environment.get("PREFECT__FLOW_RUN_ID") == run_id and any("prefect" in part for part in command):
                yield process


@contextmanager
def running_line(place: Path, *, workers: tuple[str, ...] = ("cpu", "gpu"), **settings: str) -> Iterator[Line]:
    """Everything is set up by what a user calls: the pools' templates, `prefect deploy --all`, the automations."""
    (place / "potstill").mkdir(parents=True, exist_ok=True)
    given = {"POTSTILL_DATA_ROOTS": os.pathsep.join([str(place), str(ROOT / "examples")])} | settings
    with prefect_server(place, **given) as server, ExitStack() as stack:
        for pool, limit in (("cpu", "4"), ("gpu", "1")):
            template = ("--base-job-template", f"deployments/pools/{pool}.json")
            server.call("-m", "prefect", "work-pool", "create", pool, "--type", "process", *template)
            server.call("-m", "prefect", "work-pool", "set-concurrency-limit", pool, limit)
        server.call("-m", "prefect", "--no-prompt", "deploy", "--all")
        server.call("-m", "deployments.automations")
        line = Line(server, place, stack, {})
        for pool in workers:
            line.start_worker(pool)
        yield line
