"""The processes of the box, in the order in which they start."""

import sys
from datetime import datetime
from functools import partial

import httpx

from deployments.box.config import ANY_CARD, HOST, ROOT, Box
from deployments.box.environment import WEBHOOK_SECRETS, Environments
from deployments.box.places import Places
from deployments.box.watched import Process
from potstill.errors import OrchestratorError, PotstillError
from potstill.prefect_api import PrefectApi
from potstill.release import aliases, all_recipes

PYTHON = sys.executable
PROBE_SECONDS = 2.0
SERVER, SETUP = "server", "setup"
POOL = "pool"
"""The first word of a worker's address."""
WORKERS_STOP, OTHERS_STOP, SERVER_STOPS = 0, 1, 2


def processes(box: Box, places: Places, found: Environments, config: str) -> list[Process]:
    """What `make up` keeps alive."""
    return [
        Process(
            SERVER,
            (PYTHON, "-m", "deployments.box.prefect_server", "--host", HOST, "--port", str(box.server.port)),
            found.server,
            address=f"http://{HOST}:{box.server.port}",
            answers=partial(answers, f"{found.api.url}/health"),
            stops=SERVER_STOPS,
        ),
        Process(SETUP, (PYTHON, "-m", "deployments.box.setup", config), found.client, after=(SERVER,), is_step=True),
        *(_worker("cpu", str(number), found, limit=box.workers.cpu_runs) for number in range(1, box.workers.cpu + 1)),
        *(_worker("gpu", card, found, limit=1) for card in box.workers.gpu_cards),
        *_optional(box, places, found),
    ]


def _optional(box: Box, places: Places, found: Environments) -> list[Process]:
    listed: list[Process] = []
    if box.gateway is not None:
        address = _address(box.gateway.port)
        command = (PYTHON, "-m", "potstill.cli", "serve", "--host", HOST, "--port", str(box.gateway.port))
        lacks = partial(_nothing_released, places)
        listed.append(Process("gateway", command, address=address, lacks=lacks, answers=partial(answers, address)))
    if box.webhook is not None:
        address, config = _address(box.webhook.port), ROOT / box.webhook.config
        place = ("--config", str(config), "--host", HOST, "--port", str(box.webhook.port))
        command = (PYTHON, "-m", "potstill.cli", "webhook", *place)
        lacks = partial(_no_webhook, has_secrets=bool(found.webhook[WEBHOOK_SECRETS]))
        # waits for nothing: it keeps prompts, and tells Prefect of them once that is up
        listed.append(
            Process("webhook", command, found.webhook, address, lacks=lacks, answers=partial(answers, address))
        )
    if box.reports is not None:
        address = _address(box.reports.port)
        folder = places.home / "reports"
        folder.mkdir(parents=True, exist_ok=True)
        command = (PYTHON, "-m", "deployments.reports", str(folder), "--host", HOST, "--port", str(box.reports.port))
        listed.append(Process("reports", command, found.reports, address=address, answers=partial(answers, address)))
    return listed


def _worker(pool: str, number: str, found: Environments, limit: int) -> Process:
    """One worker. It has no health check of Prefect's: that listens on every interface and keeps SIGTERM from ending it."""
    name = f"{pool}-{number}"
    is_card = pool == "gpu" and number != ANY_CARD
    needed = found.gpu_worker if pool == "gpu" else found.worker
    environment = {**needed, **({"CUDA_VISIBLE_DEVICES": number} if is_card else {})}
    return Process(
        name,
        (PYTHON, "-m", "deployments.worker", "--pool", pool, "--name", name, "--limit", str(limit)),
        environment,
        address=f"{POOL} {pool}",
        after=(SETUP,),
        answers=partial(_polls, found.api, pool, name),
        stops=WORKERS_STOP,
    )


def answers(address: str, _started_at: float = 0) -> bool:
    """Whether a server is there, be it one that answers with an error."""
    try:
        return httpx.get(address, timeout=PROBE_SECONDS, trust_env=False).status_code < 500
    except httpx.HTTPError:
        return False


def has_heard(api: PrefectApi, pool: str, name: str, since: float) -> bool:
    """Whether the server has heard from this worker since then. Errors: `OrchestratorError` where it cannot be asked."""
    found = api.post(f"/work_pools/{pool}/workers/filter", {})
    seen = [datetime.fromisoformat(worker["last_heartbeat_time"]) for worker in found if worker["name"] == name]
    return any(time.timestamp() > since for time in seen)


def _polls(api: PrefectApi, pool: str, name: str, started_at: float) -> bool:
    try:
        return has_heard(api, pool, name, started_at)
    except OrchestratorError:
        return False


def _nothing_released(places: Places) -> str | None:
    try:
        released = [aliases(places.home, recipe).champion for recipe in all_recipes(places.home)]
    except PotstillError:
        return None  # the gateway says what is wrong with it
    return None if any(released) else "nothing is released yet"


def _no_webhook(*, has_secrets: bool) -> str | None:
    return None if has_secrets else f"set {WEBHOOK_SECRETS}, then make down and make up"


def _address(port: int) -> str:
    return f"http://{HOST}:{port}"
