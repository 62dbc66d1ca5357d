"""Who has requests in flight: one owner a ledger object that writes, with a lease for those on other machines."""

from typing import NamedTuple

from sqlalchemy import BigInteger, Connection, insert, select, update

from potstill.ledger.database import Database
from potstill.ledger.schema import attempts, owners
from potstill.ledger.writing import Writer
from potstill.owner import Owner, this_process

LEASE_SECONDS = 60.0
"""An owner on another machine that has not been heard of for so long is taken for dead."""
RENEW_SECONDS = 15.0
DIED = "the process died while it was in flight"


class OwnerState(NamedTuple):
    """One row of the table, as far as others can judge it."""

    process: Owner
    lease_until: float

    def is_dead(self, now: float) -> bool:
        """A process on this machine is looked for; one on another has its lease."""
        return self.process.is_dead() if self.process.is_on_this_machine() else self.lease_until < now


def register(database: Database, connection: Connection) -> int:
    """A new owner: this process, for one ledger object."""
    row = {"process": this_process().model_dump_json(), "lease_until": database.now(connection) + LEASE_SECONDS}
    key = connection.execute(insert(owners).values(row)).inserted_primary_key
    assert key is not None
    return key[0]


def renew(database: Database, connection: Connection, owner_id: int) -> None:
    lease = database.now(connection) + LEASE_SECONDS
    connection.execute(update(owners).where(owners.c.id == owner_id).values(lease_until=lease))


def close_orphans(database: Database, writer: Writer, connection: Connection) -> int:
    """Turn what dead owners left in flight into `unknown`; returns how many. A request in a batch outlives its process."""
    bound = attempts.c.bound_usd.cast(BigInteger).label("bound_pico")
    query = select(attempts.c.id, attempts.c.run, attempts.c.month, bound, attempts.c.owner).where(
        attempts.c.status == "in_flight", attempts.c.batch.is_(None)
    )
    rows = connection.execute(query).all()
    states = states_of(connection, {row.owner for row in rows})
    now = database.now(connection)
    dead = {owner for owner, state in states.items() if state.is_dead(now)}
    return writer.close_as_unknown(connection, (row for row in rows if row.owner in dead), DIED)


def states_of(connection: Connection, ids: set[int]) -> dict[int, OwnerState]:
    """These owners, by their ids."""
    rows = connection.execute(select(owners).where(owners.c.id.in_(ids)))
    return {row.id: OwnerState(Owner.model_validate_json(row.process), row.lease_until) for row in rows}
