"""500 webhooks over 16 connections to a real receiver before a real Prefect server; both are killed or stopped on the way."""

import base64
import itertools
import json
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml
from standardwebhooks import Webhook

from potstill.curation.readers import read_lines
from potstill.inbox import count_landed, seal
from tests.ports import free_port

pytestmark = pytest.mark.drill

ROOT = Path(__file__).parents[3]
WEBHOOKS = 500
REPEATED = 50
CONNECTIONS = 16
MIN_NEW_PROMPTS = 60
MIN_INTERVAL_SECONDS = 10.0
P99_SECONDS = 0.25
"""Of every answer, those right after a start included, while Prefect's server starts and stops beside it. For a machine of its own."""
STOPPING_SECONDS = 10.0
WAITING_SECONDS = 240
"""For anything, on a machine that may be busy with other work."""
AUTH = "admin:drill"


class Delivery(NamedTuple):
    webhook_id: str
    texts: tuple[str, ...]

    @property
    def body(self) -> bytes:
        rows = [{"messages": [{"role": "user", "content": text}]} for text in self.texts]
        return json.dumps({"prompts": rows}).encode()


class Answer(NamedTuple):
    status: int
    content: dict[str, Any]
    seconds: float
    """Of the attempt that was answered."""
    attempts: int


class Prefect:
    """A server that can be stopped and started again with all that it knew."""

    def __init__(self, place: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self._log = place / "prefect.log"
        self._env = os.environ | {
            "PREFECT_HOME": str(place / "prefect"),
            "PREFECT_API_URL": self.url,
            "PREFECT_API_AUTH_STRING": AUTH,
            "PREFECT_SERVER_API_AUTH_STRING": AUTH,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        self._process: subprocess.Popen[bytes] | None = None
        user, _, password = AUTH.partition(":")
        self._client = httpx.Client(base_url=self.url, auth=(user, password), timeout=30, trust_env=False)

    def start(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=self._env, cwd=ROOT, stdout=log, stderr=log)
        wait_for("Prefect is up", self.is_up)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def is_up(self) -> bool:
        with suppress(httpx.TransportError):
            return self._client.get("/health").status_code == 200
        return False

    def post(self, path: str, body: Any) -> Any:
        for _ in range(20):
            reply = self._client.post(path, json=body)
            if reply.status_code != 503:  # its SQLite is busy, now and then
                break
            time.sleep(0.5)
        reply.raise_for_status()
        return reply.json() if reply.content else None

    def deploy(self, recipe: str) -> None:
        flow = self.post("/flows/", {"name": "redistill"})
        self.post("/deployments/", {"name": recipe, "flow_id": flow["id"], "enforce_parameter_schema": False})

    def runs(self) -> list[dict[str, Any]]:
        return self.post("/flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC"})

    def events(self) -> list[dict[str, Any]]:
        query = {"filter": {"event": {"name": ["potstill.prompts.landed"]}}, "limit": 50}
        return self.post("/events/filter", query)["events"]


class Worker(threading.Thread):
    """Does what the nightly flow does with a run: takes what has landed, and ends."""

    def __init__(self, prefect: Prefect, home: Path) -> None:
        super().__init__(daemon=True)
        self._prefect = prefect
        self._home = home
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.wait(0.3):
            with suppress(httpx.HTTPError):
                for run in self._prefect.runs():
                    if run["state_type"] == "SCHEDULED":
                        self._set(run, "RUNNING")
                        seal(self._home, "tickets")
                        self._set(run, "COMPLETED")

    def _set(self, run: dict[str, Any], state: str) -> None:
        self._prefect.post(f"/flow_runs/{run['id']}/set_state", {"state": {"type": state}, "force": True})


class Receiver:
    """`potstill webhook` in a process of its own."""

    def __init__(self, place: Path, home: Path, prefect: Prefect) -> None:
        self.secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        self._old = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        self.port = free_port()
        self.log = place / "receiver.log"
        recipe = yaml.safe_load((ROOT / "recipes/demo.yaml").read_text())
        recipe["name"] = "tickets"
        recipe["curation"]["workload"] = None
        recipe["inbox"] = {"min_new_prompts": MIN_NEW_PROMPTS, "min_interval_seconds": MIN_INTERVAL_SECONDS}
        (place / "tickets.yaml").write_text(yaml.safe_dump(recipe))
        config = {"recipes": [str(place / "tickets.yaml")], "rate": {"per_second": 5000, "burst": 5000}}
        (place / "webhook.yaml").write_text(yaml.safe_dump(config))
        self._command = [
            "-m",
            "potstill.cli",
            "webhook",
            "--config",
            str(place / "webhook.yaml"),
            "--port",
            str(self.port),
        ]
        self._env = os.environ | {
            "POTSTILL_HOME": str(home),
            "POTSTILL_WEBHOOK_SECRETS": f"{self._old} {self.secret}",
            "PREFECT_API_URL": prefect.url,
            "PREFECT_API_AUTH_STRING": AUTH,
        }
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._command], env=self._env, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        assert json.loads(self._process.stdout.readline())["url"] == f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        assert self._process.wait() == -signal.SIGKILL

    def stop(self) -> float:
        """How many seconds it took to end."""
        if self._process is None or self._process.poll() is not None:
            return 0
        began = time.monotonic()
        self._process.terminate()
        try:
            assert self._process.wait(20) == 0
        finally:
            self._process.kill()
        return time.monotonic() - began

    def send(self, client: httpx.Client, delivery: Delivery) -> Answer:
        """As a sender of Standard Webhooks does: the same id and body again until an answer says that it is kept."""
        for attempt in range(1, 400):
            sent_at = datetime.now(UTC)
            headers = {
                "content-type": "application/json",
                "webhook-id": delivery.webhook_id,
                "webhook-timestamp": str(int(sent_at.timestamp())),
                "webhook-signature": Webhook(self.secret).sign(delivery.webhook_id, sent_at, delivery.body.decode()),
            }
            began = time.monotonic()
            try:
                reply = client.post(
                    f"http://127.0.0.1:{self.port}/inbox/tickets", content=delivery.body, headers=headers
                )
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            return Answer(reply.status_code, reply.json(), time.monotonic() - began, attempt)
        raise AssertionError("never answered")


@contextmanager
def stopping(*ends: Callable[[], object]) -> Iterator[None]:
    try:
        yield
    finally:
        for end in ends:
            end()


def test_every_accepted_prompt_is_kept_once_and_runs_start_as_the_debounce_allows(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    prefect = Prefect(tmp_path)
    receiver = Receiver(tmp_path, home, prefect)
    worker = Worker(prefect, home)
    rng = random.Random(4)
    unique = [
        Delivery(f"msg_{n}", tuple(f"secretly {n}-{part}" for part in range(rng.randint(1, 4))))
        for n in range(WEBHOOKS - REPEATED)
    ]
    plan = [*unique, *rng.sample(unique, REPEATED)]
    rng.shuffle(plan)
    answers: list[tuple[Delivery, Answer]] = []
    clients = threading.local()

    def send(delivery: Delivery) -> None:
        if not hasattr(clients, "client"):
            clients.client = httpx.Client(trust_env=False, timeout=30)
        answers.append((delivery, receiver.send(clients.client, delivery)))

    def send_all(pool: ThreadPoolExecutor, deliveries: list[Delivery]) -> None:
        for _ in pool.map(send, deliveries):
            pass

    with stopping(worker.ending.set, receiver.stop, prefect.stop), ThreadPoolExecutor(CONNECTIONS) as pool:
        prefect.start()
        prefect.deploy("tickets")
        receiver.start()
        worker.start()
        began = time.monotonic()
        send_all(pool, plan[:150])
        # still queued, it would take all that lands while Prefect is away, and no second run would be due
        wait_for("the first run", lambda: [run["state_type"] for run in prefect.runs()] == ["COMPLETED"])
        prefect.stop()
        away_at = time.monotonic()
        send_all(pool, plan[150:250])
        killed: list[float] = []

        def kill_and_start() -> None:
            wait_for("280 answers", lambda: len(answers) >= 280)
            receiver.kill()
            killed.append(time.monotonic())
            receiver.start()

        killing = threading.Thread(target=kill_and_start)
        killing.start()
        send_all(pool, plan[250:400])
        killing.join(60)
        assert killed
        wait_for("the interval", lambda: time.monotonic() - away_at > MIN_INTERVAL_SECONDS + 2)
        waiting_while_away = count_landed(home, "tickets")
        assert waiting_while_away >= MIN_NEW_PROMPTS
        prefect.start()
        back_at = time.monotonic()
        send_all(pool, plan[400:])
        wait_for("the run after Prefect is back", lambda: len(prefect.runs()) >= 2)
        later_seconds = time.monotonic() - back_at
        time.sleep(MIN_INTERVAL_SECONDS + 3)  # whatever the debounce still allows
        lasted = time.monotonic() - began
        wait_for("the events", lambda: told(prefect) >= len(texts_of(unique)))
        runs, events, num_prompts = prefect.runs(), prefect.events(), len(texts_of(unique))
        load = os.getloadavg()[0]
        stop_seconds = receiver.stop()

    statuses = Counter(answer.status for _, answer in answers)
    assert statuses == {202: WEBHOOKS}
    firsts = Counter(delivery.webhook_id for delivery, answer in answers if "accepted" in answer.content)
    retried = {delivery.webhook_id for delivery, answer in answers if answer.attempts > 1}
    assert set(firsts.values()) == {1}
    unheard = {delivery.webhook_id for delivery in plan} - set(firsts)
    assert unheard <= retried, "only an answer that the kill swallowed may be missing"

    kept = Counter(
        read.prompt.messages[0]["content"]
        for path in seal(home, "tickets")
        for read in read_lines(BytesIO(path.read_bytes()))
        if read.prompt
    )
    assert kept == Counter(texts_of(unique)), "every accepted prompt, once"
    assert count_landed(home, "tickets") == 0

    allowed = 1 + int(lasted // MIN_INTERVAL_SECONDS)
    assert 2 <= len(runs) <= allowed
    assert len({run["idempotency_key"] for run in runs}) == len(runs)
    starts = sorted(datetime.fromisoformat(run["created"]) for run in runs)
    gaps = [(after - before).total_seconds() for before, after in itertools.pairwise(starts)]
    assert all(gap >= MIN_INTERVAL_SECONDS - 1 for gap in gaps), gaps
    assert sum(event["payload"]["prompts"] for event in events) == num_prompts

    log = receiver.log.read_text()
    assert "secretly" not in log
    assert "Traceback" not in log
    assert len(re.findall("Prefect is told later", log)) <= 2, "said once a process, not each time"
    assert stop_seconds < STOPPING_SECONDS

    seconds = [answer.seconds for _, answer in answers]
    p99 = percentile(seconds, 0.99)
    print(
        f"\n{WEBHOOKS} webhooks, {REPEATED} of them repeats, {CONNECTIONS} connections: answer p50"
        f" {percentile(seconds, 0.5) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, worst {max(seconds) * 1000:.0f} ms"
        f" (load {load:.1f})\n{num_prompts} prompts kept, each once; {len(retried)} sent again after the"
        f" kill, {len(unheard)} of them had been accepted unheard\n{len(runs)} runs of {allowed} that the debounce allows in"
        f" {lasted:.0f} s; {waiting_while_away} prompts waited for Prefect, their run started {later_seconds:.1f} s after it was"
        f" back\n{len(events)} events; SIGTERM to end: {stop_seconds:.1f} s"
    )
    assert p99 <= P99_SECONDS, f"at a load of {load:.1f}"


def told(prefect: Prefect) -> int:
    """Of how many prompts events have told."""
    return sum(event["payload"]["prompts"] for event in prefect.events())


def texts_of(deliveries: list[Delivery]) -> list[str]:
    return [text for delivery in deliveries for text in delivery.texts]


def wait_for(what: str, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAITING_SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"{what}: it did not happen in {WAITING_SECONDS} s"
        time.sleep(0.1)


def percentile(seconds: list[float], share: float) -> float:
    return sorted(seconds)[max(0, int(len(seconds) * share) - 1)]
