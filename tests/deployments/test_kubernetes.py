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
    """The job of a run: defaults, then what the deployment gives, then what the worker adds (Prefect's own order)."""
    template = _template(pool)
    values = {
        name: field["default"] for name, field in template["variables"]["properties"].items() if "default" in field
    }
    job = apply_values(template["job_configuration"]["job_manifest"], values | given)
    container = job["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    container["args"] = ["prefect", "flow-run", "execute"]
    job["metadata"]["generateName"] = "brave-fox-"
    job["metadata"]["labels"] = {}
    # prefect-kubernetes 0.8.0 asks for these two in the pod, where Kubernetes knows none and drops them
    assert [job["spec"]["template"]["spec"].pop(name) for name in ("parallelism", "completions")] == [1, 1]
    return job


@pytest.mark.parametrize("pool", POOLS)
def test_every_placeholder_is_a_variable_and_every_variable_of_ours_is_used(pool: str) -> None:
    template = _template(pool)
    placeholders = {found.name for found in find_placeholders(template["job_configuration"])}
    assert placeholders == set(template["variables"]["properties"])


@pytest.mark.parametrize(
    ("pool", "given"),
    [
        ("cpu", {}),
        ("cpu", {"node_selector": {"disk": "fast"}, "tolerations": [{"operator": "Exists"}]}),
        ("gpu", {}),
        (
            "gpu",
            {"gpu_count": 4, "runtime_class_name": "nvidia", "node_selector": {"card": "h100"}, "shm_size": "32Gi"},
        ),
    ],
)
def test_a_job_is_what_kubernetes_takes(pool: str, given: dict[str, Any]) -> None:
    job = _job(pool, **given)
    assert "{{" not in json.dumps(job)
    kubernetes_validate.validate(job, VERSION, strict=True)
    pod = job["spec"]["template"]["spec"]
    for name in ("node_selector", "tolerations", "runtime_class_name"):
        assert name not in given or given[name] in pod.values()


def test_a_job_with_a_wrong_field_or_type_is_refused() -> None:
    job = _job("gpu", gpu_count=["two"])
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSION, strict=True)
    job = _job("gpu")
    job["spec"]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSION, strict=True)


def test_only_gpu_runs_ask_for_cards_and_they_bear_the_cards_taint() -> None:
    limits = {pool: _job(pool)["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] for pool in POOLS}
    assert limits["gpu"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in limits["cpu"]
    assert (
        _job("gpu", gpu_count=2)["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
        == 2
    )
    assert _job("gpu")["spec"]["template"]["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert _job("cpu")["spec"]["template"]["spec"]["tolerations"] == []


@pytest.mark.parametrize(
    "path", sorted([*FOLDER.glob("*-pool.json"), *(ROOT / "deployments" / "pools").glob("*.json")]), ids=str
)
def test_every_pools_runs_send_the_heartbeats_that_the_zombie_automation_waits_for(path: Path) -> None:
    template = json.loads(path.read_text())
    fixed = template["job_configuration"]["env"]
    default = template["variables"]["properties"].get("env", {}).get("default") or {}
    env = default | (fixed if isinstance(fixed, dict) else {})
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
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [container] = pod["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "limits" in container["resources"], name
