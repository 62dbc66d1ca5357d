"""`python -m deployments.docker.polls POOL NAME`: whether the server has heard from a worker lately; its container's health check."""

import sys
from datetime import UTC, datetime, timedelta

from potstill.errors import OrchestratorError
from potstill.exits import exit_code_of
from potstill.prefect_api import PrefectApi, prefect_api

SILENT_SECONDS = 120
"""Four of a worker's heartbeats."""


def require_poll(api: PrefectApi, pool: str, name: str) -> None:
    """Errors: `OrchestratorError` where the worker is not known or has been silent for too long."""
    seen = [
        datetime.fromisoformat(worker["last_heartbeat_time"])
        for worker in api.find(f"work_pools/{pool}/workers")
        if worker["name"] == name and worker["last_heartbeat_time"]
    ]
    if not seen:
        raise OrchestratorError(f"pool {pool} knows no worker {name}: has it started?")
    silent = datetime.now(UTC) - max(seen)
    if silent > timedelta(seconds=SILENT_SECONDS):
        raise OrchestratorError(
            f"worker {name} of pool {pool} is silent for {silent.total_seconds():.0f} s: restart it"
        )


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: require_poll(prefect_api(), sys.argv[1], sys.argv[2]), debug=False))
