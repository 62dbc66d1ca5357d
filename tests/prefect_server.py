"""A Prefect server and its workers as processes of their own, for the tests of what acts on a server."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx

from deployments.box.environment import LEASES_ON_DISK
from potstill.errors import OrchestratorError
from tests.ports import free_port

ROOT = Path(__file__).parents[1]
AUTH = ("potstill", "of-the-tests")
"""As `make up` does it: the server lets in only who has this."""
PREFECT = (sys.executable, "-m", "prefect")
PATIENCE = 10

T = TypeVar("T")


class RunningServer(NamedTuple):
    url: str
    env: dict[str, str]
    pid: int

    def call(self, *command: str, check: bool = True, **extra_env: str) -> "subprocess.CompletedProcess[str]":
        """A command of this checkout against the server."""
        done = subprocess.run(
            [sys.executable, *command], env=self.env | extra_env, cwd=ROOT, check=False, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, done.stderr[-2000:]
        return done

    def find(self, what: str, **query: Any) -> list[dict[str, Any]]:
        return self._read("POST", f"/{what}/filter", query)

    def post(self, path: str, body: Any) -> Any:
        reply = self._ask("POST", path, body)
        return reply.json() if reply.content else None

    def get(self, path: str) -> Any:
        return self._read("GET", path)

    def state(self, run_id: str) -> dict[str, Any]:
        return self.get(f"/flow_runs/{run_id}")["state"]

    def _read(self, method: str, path: str, body: Any = None) -> Any:
        for _ in range(3):
            with suppress(httpx.ReadTimeout):  # SQLite on a busy machine
                return self._ask(method, path, body).json()
        raise AssertionError(f"{self.url}{path} does not answer")

    def _ask(self, method: str, path: str, body: Any) -> httpx.Response:
        for _ in range(5):
            reply = httpx.request(method, f"{self.url}{path}", json=body, timeout=30, auth=AUTH)
            if reply.status_code != 503:  # the same
                break
            time.sleep(1)
        reply.raise_for_status()
        return reply


@contextmanager
def running(
    command: tuple[str, ...], env: dict[str, str], log: Path, **options: Any
) -> "Iterator[subprocess.Popen[bytes]]":
    """A process in the background, stopped by its pid; its log goes to a file."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=env, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **options
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def prefect_server(place: Path, **settings: str) -> Iterator[RunningServer]:
    """A server on a free port with its database below `place`; started again there, it goes on."""
    port = settings.pop("port", None) or str(free_port())
    url = f"http://127.0.0.1:{port}/api"
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(place / "prefect"),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_API_AUTH_STRING": ":".join(AUTH),
        "PREFECT_API_AUTH_STRING": ":".join(AUTH),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        **LEASES_ON_DISK,
        "POTSTILL_HOME": str(place / "potstill"),
        "PYTHONPATH": str(ROOT),
        **settings,
    }
    start = (*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", port)
    with running(start, env, place / "server.log") as process:
        wait_for(lambda: _is_up(url), seconds=120)
        yield RunningServer(url, env, process.pid)


def wait_for(look: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.3)
    return found


def patiently(ask: Callable[[], T]) -> T:
    """As Prefect's own client: asked again where SQLite is busy, which the server answers with 503, or where it is away."""
    for _ in range(PATIENCE):
        try:
            return ask()
        except OrchestratorError as error:
            if "answers 503" not in str(error) and "does not answer" not in str(error):
                raise
            time.sleep(1)
    return ask()


def make_pool(server: RunningServer, name: str, limit: int) -> None:
    """A pool as deployments/pools/cpu.json has it."""
    template = json.loads((ROOT / "deployments" / "pools" / "cpu.json").read_text())
    body = {"name": name, "type": "process", "base_job_template": template, "concurrency_limit": limit}
    server.post("/work_pools/", body)


def _is_up(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/health").status_code == 200
    return False
