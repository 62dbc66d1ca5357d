"""Cancelling runs: the children of one that stopped, and the one whose child was cancelled."""

import time
from contextlib import suppress
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import TaskRunContext
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelling

from tasks.server_errors import SERVER_ERRORS

RETRIES = 3
"""Some 14 s, for a server that is busy: who cancels is about to be killed."""
SIGNAL_SECONDS = 60.0
"""So long a run that asked to be cancelled waits for its worker's signal."""


def cancel_children(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 - Prefect names them
    """Hook of a parent that was cancelled or crashed: its children on other workers stop at once."""
    cancel_runs(_find_children(flow_run.id), "the run that waits for it was stopped")


def cancel_runs(runs: list[FlowRun], reason: str) -> None:
    """Ask for each run to be cancelled; a server that stays away cannot be asked."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: RETRIES}), get_client(sync_client=True) as client:
        for run in runs:
            with suppress(*SERVER_ERRORS):
                client.set_flow_run_state(run.id, Cancelling(message=reason))


def cancel_own_run(reason: str) -> None:
    """In a task of a deployed run: end as the button in the UI would end it. It returns where no signal comes."""
    context = TaskRunContext.get()
    run_id = None if context is None else context.task_run.flow_run_id
    if run_id is None:
        return
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)
        if run.deployment_id is None:
            return
        client.set_flow_run_state(run_id, Cancelling(message=reason))
    time.sleep(SIGNAL_SECONDS)


def _find_children(parent: UUID) -> list[FlowRun]:
    """The runs of a parent that have not ended."""
    of_parent = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent]))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=of_parent)
    return [run for run in found if run.state is None or not run.state.is_final()]
