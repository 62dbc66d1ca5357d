"""A run that waits for somebody's answer: its process ends, and the zombie automation must not take it for a dead one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    for seconds in (1, 5, 15):
        with suppress(OrchestratorError):
            return api.post("/events", events)
        time.sleep(seconds)
    return api.post("/events", events)


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
