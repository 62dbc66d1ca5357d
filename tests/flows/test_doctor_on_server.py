"""The doctor against a real Prefect server: what it says of pools, workers, automations and deployments is so."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_URL

from deployments.automations import PREFIX, automations, put
from deployments.box.setup import turn_on
from potstill.doctor.finding import Finding, examine
from potstill.doctor.orchestrator import Wanted, check_server, checks_of
from potstill.prefect_api import PrefectApi, prefect_api

pytestmark = pytest.mark.flow

ROOT = Path(__file__).parents[2]
WANTED = Wanted(("demo",), is_given=True, uses_gpu_pool=True, block="no-such-block")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> PrefectApi:
    url = PREFECT_API_URL.value()
    assert url
    monkeypatch.setenv("PREFECT_API_URL", url)
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    return prefect_api()


def look() -> dict[str, Finding]:
    return {found.name: found for found in (*check_server(), *examine(checks_of(WANTED)))}


def look_at_deployments() -> list[tuple[str, str]]:
    return [(found.status, found.said) for found in examine(checks_of(WANTED)) if found.name == "deployment"]


@contextmanager
def all_of_prefect_yaml(api: PrefectApi) -> Iterator[None]:
    """Deployed as `make up` does it, and gone afterwards: the server is shared."""
    before = {deployment["id"] for deployment in api.find("deployments")}
    deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    try:
        done = subprocess.run(deploy, cwd=ROOT, env={**os.environ, "PWD": str(ROOT)}, check=False, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        yield
    finally:
        with get_client(sync_client=True) as client:
            for deployment in api.find("deployments"):
                if deployment["id"] not in before:
                    client.delete_deployment(deployment["id"])


def test_what_is_missing_fails_and_is_well_once_it_is_there(api: PrefectApi) -> None:
    before = look()
    well = ("prefect", "prefect version", "clock")
    assert [before[name].status for name in well] == ["ok"] * 3
    assert before["block"].status == "fail"
    names = ["distill-student/demo", "redistill/demo", "train-student/gpu", "evaluate-student/gpu"]
    assert look_at_deployments() == [("fail", f"no {name}") for name in names]
    with get_client(sync_client=True) as client:
        for name in ("cpu", "gpu"):
            with suppress(ObjectAlreadyExists):  # by another test of this session
                client.create_work_pool(WorkPoolCreate(name=name, type="process", concurrency_limit=1))
    for name in ("cpu", "gpu"):
        api.post(f"/work_pools/{name}/workers/heartbeat", {"name": f"w-{name}", "heartbeat_interval_seconds": 30})
    with get_client(sync_client=True) as client:
        put(automations(), PREFIX, client)
    with all_of_prefect_yaml(api):
        after = look()
        assert {name for name, found in after.items() if found.status != "ok"} == {"prefect auth", "block"}
        assert after["workers gpu"].said.startswith("1 online, the last heartbeat")
        assert after["automation"].said.startswith("runs are ended without a heartbeat, that a worker took")
        by_hand, by_night, *on_gpu = look_at_deployments()
        assert by_hand == ("ok", "distill-student/demo on pool cpu, no schedule")
        assert by_night == ("ok", "redistill/demo on pool cpu, 0 of 1 schedules on")
        assert on_gpu == [("ok", f"{name} on pool gpu, no schedule") for name in names[2:]]
        turn_on(api, "redistill/demo")
        assert look_at_deployments()[1] == ("ok", "redistill/demo on pool cpu, 1 of 1 schedules on")
        with get_client(sync_client=True) as client:
            client.pause_deployment(client.read_deployment_by_name("redistill/demo").id)
        assert look_at_deployments()[1] == ("warn", "redistill/demo is paused: its schedules do not run")
