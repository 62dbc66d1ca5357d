"""Before a server starts again: the slots of runs that lived through its absence stay theirs."""

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from prefect.server.concurrency.lease_storage.filesystem import ConcurrencyLeaseStorage

from deployments.box.environment import LEASES_ON_DISK
from tests.prefect_server import ROOT

CLIENTS_PAUSE_SECONDS = 1800
"""So long may a run's client pause between two tries, after a long outage."""


def test_a_lease_that_expired_while_the_server_was_away_is_its_runs_again_until_that_can_renew_it(
    tmp_path: Path,
) -> None:
    storage = ConcurrencyLeaseStorage(tmp_path / "concurrency_leases")
    limits = [uuid4()]
    lease = asyncio.run(storage.create_lease(limits, timedelta(seconds=-60)))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env |= {"PREFECT_HOME": str(tmp_path), **LEASES_ON_DISK}
    command = [sys.executable, "-m", "deployments.automations", "--before-server"]
    done = subprocess.run(command, env=env, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = asyncio.run(storage.read_lease(lease.id))
    assert kept is not None
    assert kept.resource_ids == limits
    assert kept.expiration > datetime.now(UTC) + timedelta(seconds=CLIENTS_PAUSE_SECONDS)
