"""The Kubernetes templates, filled in as the worker of prefect-kubernetes fills them, and the manifests: checked against the schemas."""

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prefect.utilities.templating import apply_values, find_placeholders

from deployments.automations import HEARTBEAT_SECONDS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deployments" / "kubernetes"
POOLS = ("cpu", "gpu")
VERSION = "1.33"


def _template(pool: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{pool}-pool.json").read_text())


def _job(pool: str, **given: Any) -> dict[str, Any]:
    """The job of a run: defaults, then what the run gives, then what the worker adds (Prefect's own order)."""
    template = _template(pool)
    values = {name: field["default"] for name, field in template["variables"]["properties"].items()}
    job = apply_values(template["job_configuration"]["job_manifest"], values | given)
    container = job["spec"]["template"]["spec"]["containers"][0]
    container["env"] = template["job_configuration"]["env"]
    container["args"] = ["prefect", "flow-run", "execute"]
    job["metadata"]["generateName"] = "brave-fox-"
    # prefect-kubernetes 0.8.0 asks for these two in the pod, where Kubernetes knows none and drops them
    assert [job["spec"]["template"]["spec"].pop(name) for name in ("parallelism", "completions")] == [1, 1]
    return job


def _container(pool: str, **given: Any) -> dict[str, Any]:
    return _job(pool, **given)["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("pool", POOLS)
def test_what_a_run_may_choose_are_whole_numbers_within_bounds_and_nothing_else(pool: str) -> None:
    """Not even text: the worker puts the secret of a block in the place of `{{ prefect.blocks… }}` in any."""
    template = _template(pool)
    variables = template["variables"]
    placeholders = {found.name for found in find_placeholders(template["job_configuration"])}
    assert placeholders == set(variables["properties"])
    assert variables["additionalProperties"] is False
    for field in variables["properties"].values():
        assert field["type"] == "integer"
        assert 1 <= field["minimum"] <= field["default"] <= field["maximum"]


@pytest.mark.parametrize(
    ("pool", "given"),
    [
        ("cpu", {}),
        ("cpu", {"memory_gib": 64}),
        ("gpu", {}),
        ("gpu", {"gpu_count": 4, "memory_gib": 128, "shm_gib": 32}),
    ],
)
def test_a_job_is_what_kubernetes_takes(pool: str, given: dict[str, Any]) -> None:
    job = _job(pool, **given)
    assert "{{" not in json.dumps(job)
    kubernetes_validate.validate(job, VERSION, strict=True)


def test_a_job_with_a_wrong_field_or_type_is_refused() -> None:
    job = _job("gpu", gpu_count=["two"])
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSION, strict=True)
    job = _job("gpu")
    job["spec"]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSION, strict=True)


def test_only_gpu_runs_ask_for_cards_and_they_bear_the_cards_taint() -> None:
    limits = {pool: _container(pool)["resources"]["limits"] for pool in POOLS}
    assert limits["gpu"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in limits["cpu"]
    chosen = _container("gpu", gpu_count=2, memory_gib=100)["resources"]["limits"]
    assert (chosen["nvidia.com/gpu"], chosen["memory"]) == (2, "100Gi")
    assert _job("gpu")["spec"]["template"]["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert _job("cpu")["spec"]["template"]["spec"]["tolerations"] == []


def test_runs_on_cards_get_another_secret_than_those_that_ask_the_teacher() -> None:
    """docs/kubernetes.md says what lies in each: no teacher's key and no ledger in that of pool gpu."""
    secrets = {pool: _container(pool)["envFrom"] for pool in POOLS}
    assert secrets == {
        "cpu": [{"secretRef": {"name": "potstill"}}],
        "gpu": [{"secretRef": {"name": "potstill-gpu"}}],
    }


@pytest.mark.parametrize(
    "path", sorted([*FOLDER.glob("*-pool.json"), *(ROOT / "deployments" / "pools").glob("*.json")]), ids=str
)
def test_every_pools_runs_send_the_heartbeats_that_the_zombie_automation_waits_for(path: Path) -> None:
    env = json.loads(path.read_text())["job_configuration"]["env"]
    if isinstance(
        env, list
    ):  # of Kubernetes: a list takes in nothing from a run's job variables, as Prefect has it for a dict
        env = {variable["name"]: variable["value"] for variable in env}
    assert env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(HEARTBEAT_SECONDS)


def _pods() -> list[tuple[str, dict[str, Any]]]:
    manifests = list(yaml.safe_load_all((FOLDER / "manifests.yaml").read_text()))
    pods = [
        (each["metadata"]["name"], each["spec"]["template"]["spec"])
        for each in manifests
        if each["kind"] == "Deployment"
    ]
    return pods + [(f"job {pool}", _job(pool)["spec"]["template"]["spec"]) for pool in POOLS]


def test_every_manifest_is_what_kubernetes_takes_and_none_holds_a_secret() -> None:
    manifests = list(yaml.safe_load_all((FOLDER / "manifests.yaml").read_text()))
    for manifest in manifests:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    assert {manifest["kind"] for manifest in manifests} >= {"Namespace", "Role", "Service", "Deployment"}
    assert not [manifest for manifest in manifests if manifest["kind"] == "Secret"]


@pytest.mark.parametrize(("name", "pod"), _pods(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_pod_meets_the_restricted_standard_that_its_namespace_enforces(name: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert name.startswith("worker-") or pod["automountServiceAccountToken"] is False, (
        "only workers speak with Kubernetes"
    )
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [container] = pod["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "limits" in container["resources"], name
