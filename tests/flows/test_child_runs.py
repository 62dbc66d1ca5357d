"""A run follows its child on a real Prefect server, and says what holds it up."""

import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Crashed, Late, Pending

from potstill.errors import OrchestratorError
from tasks import cancelling, child_runs
from tests.ports import free_port
from tests.prefect_server import wait_for

pytestmark = pytest.mark.flow

THE_CLIENTS_RETRIES_SECONDS = 120
"""Its ten retries wait 2, 4, 8 … s: half an hour in all."""


@flow
def child() -> None: ...


@flow
def parent(run_id: UUID) -> str | None:
    with get_client(sync_client=True) as client:
        return child_runs.follow(client.read_flow_run(run_id)).name


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (Late(), "waits for a worker: Late"),
        (Pending(name="Submitting"), "was taken by a worker and has not begun: Submitting"),
    ],
)
def test_a_child_that_does_not_begin_is_said_and_followed_to_its_end(
    state: State[None], said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(child_runs, "WAITING_SECONDS", 0.0)
    monkeypatch.setattr(child_runs, "POLL_SECONDS", 0.05)
    with get_client(sync_client=True) as client, ThreadPoolExecutor() as beside:
        run = client.create_flow_run(child, state=state)
        following = beside.submit(parent, run.id)
        try:
            wait_for(lambda: f"{run.name} {said}" in caplog.text, 30)
        finally:
            client.set_flow_run_state(run.id, Crashed(), force=True)
        assert following.result(60) == "Crashed"


def test_a_server_that_stays_away_is_borne_as_long_as_is_said_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_runs, "OUTAGE_SECONDS", 0.5)
    monkeypatch.setattr(child_runs, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(cancelling, "RETRIES", 0)
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(child)
    nobody = {
        PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api",
        PREFECT_CLIENT_MAX_RETRIES: 10,
    }
    began = time.monotonic()
    with temporary_settings(nobody), pytest.raises(OrchestratorError, match="has not answered"):
        child_runs.follow(run)
    assert time.monotonic() - began < THE_CLIENTS_RETRIES_SECONDS
