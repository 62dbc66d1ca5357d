"""A run that waits for somebody's answer: its process ends, and the zombie automation must not take it for a dead one."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Timer
from typing import Any
from uuid import uuid4

from prefect.exceptions import Pause
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

from potstill.errors import OrchestratorError
from potstill.prefect_api import PrefectApi
from tasks.events import WAITING

log = logging.getLogger(__name__)

PAUSES_SECONDS = (1, 5, 15)
"""Between the attempts to reach the server."""
SETTLED_SECONDS = 5.0
"""After this, the last heartbeat has reached the server and been looked at."""


@contextmanager
def set_aside() -> Iterator[None]:
    """Around `suspend_flow_run`: tells the server last of all that no heartbeat will follow.

    The last heartbeat often reaches the server after the suspension. The zombie automation then waits for the next one in
    vain, and calls the run Crashed. Prefect's own event worker has ended by then: so a thread posts it, and the process waits.
    """
    try:
        yield
    except Pause:
        api = PrefectApi(PREFECT_API_URL.value() or "", PREFECT_API_AUTH_STRING.value())
        if api.url and deployment.id:
            Timer(SETTLED_SECONDS, _post, (api, [_waiting()])).start()
        raise


def _post(api: PrefectApi, events: list[dict[str, Any]]) -> None:
    said = ""
    for pause_seconds in (0, *PAUSES_SECONDS):
        time.sleep(pause_seconds)
        try:
            return api.post("/events", events)
        except OrchestratorError as error:
            said = str(error)
    log.warning("the server does not know that this run waits, and may call it Crashed: %s", said)
    return None


def _waiting() -> dict[str, Any]:
    return {
        "id": str(uuid4()),
        "event": WAITING,
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}"},
        "related": [
            {
                "prefect.resource.id": f"prefect.flow.{flow_run.flow_name}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": flow_run.flow_name,
            },
            {"prefect.resource.id": f"prefect.deployment.{deployment.id}", "prefect.resource.role": "deployment"},
        ],
        "payload": {},
    }
