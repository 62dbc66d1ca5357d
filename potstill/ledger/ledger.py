"""The ledger: every HTTP attempt is a row before it leaves, every answer is stored before it counts.

An attempt's row is also its reservation and its claim: while it is in flight, its upper bound counts against the caps of
its run and its month, and nobody else asks the same. What a dead process left in flight becomes `unknown` and counts at
that bound for ever.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection

from potstill.ledger import owners
from potstill.ledger.database import Database
from potstill.ledger.entries import (
    NO_CAPS,
    AccountState,
    Admission,
    Answer,
    AttemptPlan,
    Caps,
    KeyCost,
    Settlement,
    Standing,
)
from potstill.ledger.reading import Reader
from potstill.ledger.spend import SpendRow
from potstill.ledger.writing import Begin, Writer

IDS_AN_OWNER = 1 << 32


class Ledger:
    """One database of attempts and answers; safe to use from several threads, processes and machines.

    Errors: `UsageError` for an address that cannot be opened; SQLAlchemy's where the database fails later.
    """

    def __init__(self, url: str | None = None) -> None:
        self._database = Database(url)
        self.url = self._database.url
        self.id = self._database.id
        self._writer = Writer(self._database)
        self._reader = Reader(self._database)
        self._lock = threading.Lock()
        self._owner_id: int | None = None
        self._last_id = 0

    def begin(self, plan: AttemptPlan, caps: Caps = NO_CAPS) -> Admission:
        """Record one attempt and reserve its upper bound."""
        return self.write([], [(plan, caps)])[0]

    def settle(self, settlement: Settlement) -> None:
        """Close one attempt, release its reservation and store its answer."""
        self.write([settlement], [])

    def write(
        self, settlements: Sequence[Settlement], wanted: Sequence[tuple[AttemptPlan, Caps]], batch: str | None = None
    ) -> list[Admission]:
        """Settle these, then begin those, in one transaction; returns what became of each that wants to begin.

        Args:
            settlements: attempts that ended; they make room for those that begin.
            wanted: what is about to be sent, and under which caps.
            batch: the token of the provider's batch that the attempts are part of.
        """
        with self._writing() as connection:
            if settlements:
                self._writer.settle(connection, settlements)
            if not wanted:
                return []
            owner, now = self._owner(connection), self._database.now(connection)
            begins = [Begin(self._next_id(owner), owner, plan, caps, batch) for plan, caps in wanted]
            return self._writer.begin(connection, begins, now)

    def renew_lease(self) -> None:
        """Tell the other machines that this one lives; to be called every `owners.RENEW_SECONDS`."""
        with self._writing() as connection:
            owners.renew(self._database, connection, self._owner(connection))

    def close_orphans(self) -> int:
        """Turn what dead processes left in flight into `unknown`, and return how many that were."""
        with self._writing() as connection:
            return owners.close_orphans(self._database, self._writer, connection)

    def find_answers(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The stored answers among these keys."""
        return self._reader.find_answers(keys)

    def look_up(self, keys: Iterable[str]) -> Standing:
        """What is still to be asked among these keys, and what was refused for good."""
        return self._reader.look_up(keys)

    def costs(self, keys: Iterable[str]) -> dict[str, KeyCost]:
        """What each of these keys has cost in all its attempts, whichever run made them."""
        return self._reader.costs(keys)

    def account(self, name: str) -> AccountState:
        """What the account of a run or a month has spent and reserved."""
        return self._reader.account(name)

    def spend(self, account: str) -> list[SpendRow]:
        """What was spent at the expense of a run or a month, by purpose, model and status."""
        return self._reader.spend(account)

    def close(self) -> None:
        """Give the connections back."""
        self._database.close()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._lock:
            owner_id = self._owner_id
            try:
                with self._database.writing() as connection:
                    yield connection
            except BaseException:
                self._owner_id = owner_id  # what this transaction had added is not there
                self._writer.forget_prices()
                raise

    def _owner(self, connection: Connection) -> int:
        if self._owner_id is None:
            self._owner_id = owners.register(self._database, connection)
            self._last_id = self._owner_id * IDS_AN_OWNER
        return self._owner_id

    def _next_id(self, owner: int) -> int:
        self._last_id += 1
        assert self._last_id // IDS_AN_OWNER == owner
        return self._last_id
