"""The doctor against a real Prefect server: what it says of pools, workers, automations and deployments is so."""

from contextlib import suppress

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_URL

from deployments.automations import PREFIX, automations, put
from flows.distill_student import distill_student
from potstill.doctor.finding import Finding, examine
from potstill.doctor.orchestrator import Wanted, check_server, checks_of
from potstill.prefect_api import PrefectApi, prefect_api

pytestmark = pytest.mark.flow

WANTED = Wanted(("doctored",), is_given=True, uses_gpu_pool=True, block="no-such-block")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> PrefectApi:
    url = PREFECT_API_URL.value()
    assert url
    monkeypatch.setenv("PREFECT_API_URL", url)
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    return prefect_api()


def look() -> dict[str, Finding]:
    return {found.name: found for found in (*check_server(), *examine(checks_of(WANTED)))}


def test_what_is_missing_fails_and_is_well_once_it_is_there(api: PrefectApi) -> None:
    before = look()
    well = ("prefect", "prefect version", "clock")
    assert [before[name].status for name in well] == ["ok"] * 3
    assert [before[name].status for name in ("deployment", "block")] == ["fail"] * 2
    with get_client(sync_client=True) as client:
        for name in ("cpu", "gpu"):
            with suppress(ObjectAlreadyExists):  # by another test of this session
                client.create_work_pool(WorkPoolCreate(name=name, type="process", concurrency_limit=1))
        flow_id = client.create_flow(distill_student)
        client.create_deployment(flow_id, "doctored", work_pool_name="cpu")
    for name in ("cpu", "gpu"):
        api.post(f"/work_pools/{name}/workers/heartbeat", {"name": f"w-{name}", "heartbeat_interval_seconds": 30})
    with get_client(sync_client=True) as client:
        put(automations(), PREFIX, client)
    after = look()
    assert {name for name, found in after.items() if found.status != "ok"} == {"prefect auth", "block"}
    assert after["workers gpu"].said.startswith("1 online, the last heartbeat")
    assert after["automation"].said.startswith("runs are ended without a heartbeat, that a worker took")
