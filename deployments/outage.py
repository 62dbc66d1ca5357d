"""After a server was down: runs went on meanwhile, but their heartbeats had nobody to go to.

Prefect keeps in its database until when a run's next sign of life is due. A server that starts again looks at that before the
first one can reach it, and the automations for dead runs would call every run Crashed that lived through the outage.
"""

import asyncio
from datetime import timedelta

import sqlalchemy
from prefect.server.database import provide_database_interface
from prefect.server.events.schemas.automations import EventTrigger
from prefect.types._datetime import now
from sqlalchemy.exc import DBAPIError

from deployments.automations import HEARTBEAT_SECONDS, PREFIX

STARTING_SECONDS = 60
"""What a server takes to start on a busy machine."""


def give_time() -> int:
    """Put off what is due of our automations; returns for how many runs. 0 where the database is not made yet.

    A run that died during the outage is found all the same, later by this much.
    """
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
