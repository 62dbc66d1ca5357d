"""A run that this one started on another worker, followed to its end."""

import time
from contextlib import suppress
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from potstill.errors import OrchestratorError
from tasks.cancelling import cancel_runs
from tasks.server_errors import SERVER_ERRORS

POLL_SECONDS = 1.0
OUTAGE_SECONDS = 600.0
"""So long may the server be away while a child works; its result lies in the store."""
WAITING_SECONDS = 60.0
"""How often the log says that the child has not begun."""


def follow(child: FlowRun) -> State[Any]:
    """The state in which a child ends. Whatever stops the wait, a signal or an error, cancels the child.

    Errors: `OrchestratorError` where the server stays away.
    """
    try:
        return _wait_for(child)
    except BaseException:
        cancel_runs([child], "the run that waits for it was stopped")
        raise


def _wait_for(child: FlowRun) -> State[Any]:
    seen = said = time.monotonic()
    with get_client(sync_client=True) as client:
        while (state := _look(client, child.id)) is None or not state.is_final():
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            seen = seen if state is None else now
            if now - seen > OUTAGE_SECONDS:
                raise OrchestratorError(f"Prefect has not answered for {OUTAGE_SECONDS:.0f} s: start it")
            if state is not None and (state.is_scheduled() or state.is_pending()) and now - said > WAITING_SECONDS:
                said = now
                why = "waits for a worker" if state.is_scheduled() else "was taken by a worker and has not begun"
                get_run_logger().warning("%s %s: %s", child.name, why, state.name)
    return state


def _look(client: SyncPrefectClient, run_id: UUID) -> State[Any] | None:
    """Without the client's own retries, which take half an hour together: it is looked again anyway."""
    with suppress(*SERVER_ERRORS), temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        return client.read_flow_run(run_id).state
    return None
