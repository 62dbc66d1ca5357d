"""After a server was down: runs went on meanwhile, but their heartbeats had nobody to go to.

Prefect keeps in its database until when a run's next heartbeat is due. A server that starts again looks at that before the
first heartbeat can reach it, and the zombie automation would call every run Crashed that lived through the outage.
"""

import asyncio
from datetime import timedelta

import sqlalchemy
from prefect.server.database import provide_database_interface
from prefect.types._datetime import now
from sqlalchemy.exc import DBAPIError

from deployments.automations import HEARTBEAT_SECONDS, MISSED_SECONDS, PREFIX

STARTING_SECONDS = 60
"""What a server takes to start on a busy machine."""


def give_time() -> int:
    """Put off what is due of our automations; returns for how many runs. 0 where the database is not made yet.

    A run that died during the outage is found all the same, later by this much.
    """
    return asyncio.run(_give_time())


async def _give_time() -> int:
    db = provide_database_interface()
    due = now("UTC") + timedelta(seconds=STARTING_SECONDS + HEARTBEAT_SECONDS + MISSED_SECONDS)
    ours = sqlalchemy.select(db.Automation.id).where(db.Automation.name.startswith(PREFIX, autoescape=True))
    bucket = db.AutomationBucket
    put_off = (
        sqlalchemy.update(bucket)
        .where(bucket.automation_id.in_(ours), bucket.end < due, bucket.count < 1)
        .values(end=due)
    )
    try:
        async with db.session_context(begin_transaction=True) as session:
            result = await session.execute(put_off)
            return result.rowcount  # pyright: ignore[reportAttributeAccessIssue] - an update has it
    except DBAPIError:
        return 0
