"""Pool gpu: what its runs need of a machine, and what a run is told before it pays the teacher for work that waits on it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound

from potstill.errors import UsageError
from tasks.gpu_pool import EVALUATE, TRAIN
from tasks.preflight import check_gpu_pool

pytestmark = pytest.mark.flow

ROOT = Path(__file__).parents[2]
LOADED = """
import sys, flows.train_student, flows.evaluate_student
print(*sorted(name for name in sys.modules if name.startswith(("potstill.ledger", "potstill.teacher", "sqlalchemy"))))
"""


def test_the_flows_of_pool_gpu_load_neither_the_ledger_nor_what_asks_a_teacher() -> None:
    """Its workers are given no ledger and no key: deployments/compose.yaml, docs/kubernetes.md, `make up`."""
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@flow
def looking() -> None:
    check_gpu_pool()


@pytest.fixture
def _pool_of_two_deployments() -> Iterator[None]:
    with get_client(sync_client=True) as client:
        with suppress(ObjectNotFound):  # of another test of this session, with its workers
            client.delete_work_pool("gpu")
        client.create_work_pool(WorkPoolCreate(name="gpu", type="process"))
        made = []
        for name in (TRAIN, EVALUATE):
            flow_name, _, deployment = name.partition("/")
            flow_id = client.create_flow_from_name(flow_name)
            made.append(client.create_deployment(flow_id, deployment, work_pool_name="gpu"))
        yield
        for deployment_id in made:
            client.delete_deployment(deployment_id)
        client.delete_work_pool("gpu")


def test_a_server_without_the_deployments_stops_a_run_before_anything_is_paid() -> None:
    with pytest.raises(UsageError, match="no deployment train-student/gpu: deploy it with `prefect deploy --all`"):
        looking()


@pytest.mark.usefixtures("_pool_of_two_deployments")
def test_a_pool_that_takes_no_runs_is_told_before_anything_is_paid(caplog: pytest.LogCaptureFixture) -> None:
    looking()
    assert "work pool gpu has no worker online: `make up`, or `prefect worker start --pool gpu`" in caplog.text
    caplog.clear()
    with get_client(sync_client=True) as client:
        client.update_work_pool("gpu", WorkPoolUpdate(is_paused=True))
    looking()
    assert "work pool gpu is paused: `prefect work-pool resume gpu`" in caplog.text
    caplog.clear()
    with get_client(sync_client=True) as client:
        client.update_work_pool("gpu", WorkPoolUpdate(is_paused=False))
        client.send_worker_heartbeat("gpu", "one", heartbeat_interval_seconds=30)
    looking()
    assert "work pool" not in caplog.text
