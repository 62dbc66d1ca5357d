"""What the server must know before the workers start: pools and their limits, deployments, schedules, automations.

All of it may be done again and again: `python -m deployments.box.setup CONFIG`, with the server's address in the environment.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from deployments.box.config import ROOT, Box, load_box
from potstill.errors import OrchestratorError, UsageError
from potstill.exits import exit_code_of
from potstill.prefect_api import PrefectApi, prefect_api

AUTOMATIONS = "deployments.automations"
"""Creates them all where it is there; it takes the server's address from the environment."""


def set_up(box: Box, api: PrefectApi) -> None:
    """Bring the server to what the checkout and box.yaml say.

    Errors: `OrchestratorError` where it refuses; `UsageError` where a deployment has no schedule to turn on.
    """
    make_pool(api, "cpu", box.workers.cpu_runs)
    make_pool(api, "gpu", max(1, len(box.workers.gpu_cards)))
    _run("-m", "prefect", "--no-prompt", "deploy", "--all")
    for deployment in box.schedules:
        turn_on(api, deployment)
    if importlib.util.find_spec(AUTOMATIONS) is not None:
        _run("-m", AUTOMATIONS)


def make_pool(api: PrefectApi, name: str, limit: int) -> None:
    """Create a pool from its template in deployments/pools, or bring it to that; so many runs at once."""
    template = json.loads((ROOT / "deployments" / "pools" / f"{name}.json").read_text(encoding="utf-8"))
    settings = {"base_job_template": template, "concurrency_limit": limit}
    if api.find("work_pools", work_pools={"name": {"any_": [name]}}):
        api.patch(f"/work_pools/{name}", settings)
    else:
        api.post("/work_pools/", {"name": name, "type": "process", **settings})


def turn_on(api: PrefectApi, deployment: str) -> None:
    """Turn on every schedule of a deployment."""
    flow, _, name = deployment.partition("/")
    query = {"flows": {"name": {"any_": [flow]}}, "deployments": {"name": {"any_": [name]}}}
    [found] = api.find("deployments", **query) or [{"schedules": []}]
    if not found["schedules"]:
        raise UsageError(
            f"schedules: {deployment} has no schedule in prefect.yaml: add one, or take it out of box.yaml"
        )
    for schedule in found["schedules"]:
        api.patch(f"/deployments/{found['id']}/schedules/{schedule['id']}", {"active": True})


def _run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False)
    if done.returncode:
        raise OrchestratorError(
            f"`python {' '.join(arguments)}` ended with status {done.returncode}; what it said stands above"
        )


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: set_up(load_box(Path(sys.argv[1])), prefect_api()), debug=False))
