"""After a server was down: runs went on meanwhile, but their heartbeats had nobody to go to, and their slots nobody to renew them.

Prefect keeps in its database until when a run's next sign of life is due. A server that starts again looks at that before the
first one can reach it, and the automations for dead runs would call every run Crashed that lived through the outage.

A run of a deployment that has a concurrency limit holds its slot by a lease, renews that every 225 s, and ends itself where the
server knows the lease no more. Prefect's default keeps leases in the server's memory: see `LEASES_ON_DISK`.
"""

import asyncio
from datetime import timedelta
from uuid import UUID

import sqlalchemy
from prefect.server.concurrency.lease_storage import get_concurrency_lease_storage
from prefect.server.concurrency.lease_storage.filesystem import ConcurrencyLeaseStorage
from prefect.server.database import provide_database_interface
from prefect.server.events.schemas.automations import EventTrigger
from prefect.types._datetime import now
from sqlalchemy.exc import DBAPIError

from deployments.automations import HEARTBEAT_SECONDS, PREFIX

STARTING_SECONDS = 60
"""What a server takes to start on a busy machine."""
LEASE_SECONDS = 3600
"""Runs ask again after pauses that grow with the outage, half an hour at most; a dead run's slot is freed as it is found dead."""


def give_time() -> int:
    """Put off what is due of our automations; returns for how many runs. 0 where the database is not made yet.

    A run that died during the outage is found all the same, later by this much. The leases of slots are kept too.
    """
    storage = get_concurrency_lease_storage()
    if isinstance(storage, ConcurrencyLeaseStorage):
        leases = [UUID(path.stem) for path in storage.storage_path.glob("*-*.json")]
        asyncio.run(_keep(leases, storage))
    return asyncio.run(_give_time())


async def _give_time() -> int:
    db = provide_database_interface()
    bucket = db.AutomationBucket
    up = now("UTC") + timedelta(seconds=STARTING_SECONDS + HEARTBEAT_SECONDS)
    ours = sqlalchemy.select(db.Automation).where(db.Automation.name.startswith(PREFIX, autoescape=True))
    num_runs = 0
    try:
        async with db.session_context(begin_transaction=True) as session:
            for automation in (await session.scalars(ours)).all():
                if not isinstance(automation.trigger, EventTrigger):
                    continue
                due = up + automation.trigger.within
                put_off = (
                    sqlalchemy.update(bucket)
                    .where(bucket.automation_id == automation.id, bucket.end < due, bucket.count < 1)
                    .values(end=due)
                )
                num_runs += (await session.execute(put_off)).rowcount  # pyright: ignore[reportAttributeAccessIssue] - an update has it
    except DBAPIError:
        return 0
    return num_runs


async def _keep(leases: list[UUID], storage: ConcurrencyLeaseStorage) -> None:
    """None expires before its run has had time to renew it."""
    for lease in leases:
        await storage.renew_lease(lease, timedelta(seconds=LEASE_SECONDS))
