"""A box in a clone of this checkout, on free ports and in a home of its own, as `make up` starts it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml

from deployments.box.leftovers import end_all, marked
from deployments.box.places import Kept, Places, State
from potstill.prefect_api import PrefectApi
from potstill.subprocesses import process_started_at
from tests.ports import free_ports
from tests.prefect_server import patiently

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 60.0

T = TypeVar("T")


def eventually(look: Callable[[], T | None], seconds: float = PATIENCE_SECONDS) -> T:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
    return found


class ClonedBox:
    """The clone, its home, and what a user would do with them."""

    def __init__(self, place: Path, **sections: Any) -> None:
        self.checkout = place / "checkout"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.checkout)], check=True)
        self.places = Places(place / "home")
        self.config = place / "box.yaml"
        self.ports = dict(zip(("server", "gateway", "webhook", "reports"), free_ports(4), strict=True))
        config = {name: {"port": port} for name, port in self.ports.items()} | sections
        self.config.write_text(yaml.safe_dump(config))
        others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in {"", str(ROOT)}]
        self.env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "POTSTILL_", "PYTEST_", "MAKE", "MFLAGS"))
        } | {"POTSTILL_HOME": str(self.places.home), "PYTHONPATH": os.pathsep.join([str(self.checkout), *others])}

    def make(self, target: str) -> "subprocess.CompletedProcess[str]":
        """`make TARGET` with the environment that runs the tests, which is taken for installed."""
        found = shutil.which("make")
        assert found
        installed = ("-o", f"{sys.prefix}/.installed", f"VENV={sys.prefix}")
        return subprocess.run(
            [found, *installed, f"BOX={self.config}", target],
            cwd=self.checkout,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )

    def change(self, name: str, old: str, new: str) -> None:
        """Edit a file of the clone, as a user does before `make up`."""
        path = self.checkout / name
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    def deploy_also(self, name: str, entrypoint: str, pool: str, **fields: Any) -> None:
        """One more entry of the clone's prefect.yaml."""
        path = self.checkout / "prefect.yaml"
        data = yaml.safe_load(path.read_text())
        data["deployments"].append({"name": name, "entrypoint": entrypoint, "work_pool": {"name": pool}, **fields})
        path.write_text(yaml.safe_dump(data))

    def up(self) -> str:
        done = self.make("up")
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout

    def logs(self) -> str:
        texts = sorted(self.places.logs.glob("*.log"))
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in texts)

    @property
    def state(self) -> State:
        return eventually(self.places.read_state)

    @property
    def api(self) -> PrefectApi:
        return PrefectApi(f"http://127.0.0.1:{self.ports['server']}/api", self.places.auth.read_text().strip())

    def kept(self, name: str) -> Kept:
        return next(kept for kept in self.state.processes if kept.name == name)

    def await_another(self, name: str, before: Kept) -> Kept:
        """The process that has taken the place of one, once it answers."""

        def look() -> Kept | None:
            now = self.kept(name)
            return now if now.condition == "up" and now.pid != before.pid else None

        return eventually(look)

    def deployment(self, full_name: str) -> dict[str, Any]:
        flow, _, name = full_name.partition("/")
        query = {"flows": {"name": {"any_": [flow]}}, "deployments": {"name": {"any_": [name]}}}
        [found] = self.ask("POST", "/deployments/filter", query)
        return found

    def start_run(self, full_name: str, **body: Any) -> str:
        path = f"/deployments/{self.deployment(full_name)['id']}/create_flow_run"
        return self.ask("POST", path, {"state": {"type": "SCHEDULED"}, **body})["id"]

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        return patiently(lambda: self.api.get(path) if method == "GET" else self.api.post(path, body))

    def run_state(self, run: str) -> dict[str, Any]:
        return self.ask("GET", f"/flow_runs/{run}")["state"]

    def await_run(self, run: str, kinds: set[str], seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            state = self.run_state(run)
            return state if state["type"] in kinds else None

        return eventually(look, seconds)

    def environment(self) -> dict[str, str]:
        """What a shell has that has sourced the box's file."""
        command = (
            f". {self.places.env}; exec {sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'"
        )
        done = subprocess.run(["sh", "-c", command], env=self.env, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def open_ports(self) -> dict[str, int]:
        """Those of its ports that somebody answers on."""
        found: dict[str, int] = {}
        for name, port in self.ports.items():
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    found[name] = port
        return found


@contextmanager
def cloned_box(place: Path, **sections: Any) -> Iterator[ClonedBox]:
    """A box that is down again at the end, whatever a test has done to it."""
    box = ClonedBox(place, **sections)
    try:
        yield box
    finally:
        state = box.places.read_state()
        box.make("down")
        if state is not None:
            left = end_all(lambda: marked(state.mark), grace_seconds=0)
            assert left == 0, f"{left} processes were left running"


def memory_mib(mark: str) -> float:
    total = 0.0
    for process in marked(mark):
        try:
            total += process.memory_info().rss / 2**20
        except psutil.Error:
            continue
    return total


def is_alive(pid: int | None) -> bool:
    return pid is not None and process_started_at(pid) is not None
