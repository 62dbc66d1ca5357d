"""The ledger: every HTTP attempt is a row before it leaves, every answer is stored before it counts.

An attempt's row is also its reservation and its claim: while it is in flight, its upper bound counts against the caps of
its run and its month, and nobody else asks the same. What a dead process left in flight becomes `unknown` and counts at
that bound for ever.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache

from sqlalchemy import Connection

from potstill.ledger import batches, giving_up, owners
from potstill.ledger.database import Database, default_url, is_fault_of_data
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
IN_DOUBT = "never sent: the database failed while it was begun"

log = logging.getLogger(__name__)


class Ledger:
    """One database of attempts and answers; safe to use from several threads, processes and machines.

    Errors: `UsageError` for an address that cannot be opened; `LedgerError` where the database fails later.
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
        self._begun: list[Settlement] = []
        self._left = _left_in(self.id)

    def begin(self, plan: AttemptPlan, caps: Caps = NO_CAPS) -> Admission:
        """Record one attempt and reserve its upper bound."""
        return self.write([], [(plan, caps)])[0]

    def settle(self, settlement: Settlement) -> None:
        """Close one attempt, release its reservation and store its answer."""
        self.write([settlement], [])

    def settle_each(self, settlements: Iterable[Settlement]) -> None:
        """Close attempts one by one: one that the database will not take as it is keeps its cost and loses its texts.

        Errors: whatever is no fault of what is to be written.
        """
        for settlement in settlements:
            forms = (settlement, settlement.without_texts(), settlement.at_its_bound())
            for form in forms:
                try:
                    self.settle(form)
                    break
                except Exception as error:
                    if not is_fault_of_data(error) or form is forms[-1]:
                        raise
                    log.warning("what came of %s cannot be stored: %s", form.plan.prompt_id, error)

    def write(self, settlements: Sequence[Settlement], wanted: Sequence[tuple[AttemptPlan, Caps]]) -> list[Admission]:
        """Settle these, then begin those, in one transaction; returns what became of each that wants to begin.

        Args:
            settlements: attempts that ended; they make room for those that begin.
            wanted: what is about to be sent, and under which caps.
        """
        owner = self._owner() if wanted else None
        with self._writing() as connection:
            if settlements:
                self._writer.settle(connection, settlements)
            return [] if owner is None else self._begin(connection, owner, wanted)

    def begin_batch(
        self, token: str, provider: str, base_url: str, run: str, wanted: Sequence[tuple[AttemptPlan, Caps]]
    ) -> list[Admission]:
        """Record a batch that is about to be handed in, and begin its requests; it holds those that are admitted.

        Nothing is recorded where none is.
        """
        owner = self._owner()
        with self._writing() as connection:
            now = self._database.now(connection)
            row = batches.BatchRow(token, None, provider, base_url, run, "submitting", len(wanted), now)
            batches.record(connection, row, owner)
            admissions = self._begin(connection, owner, wanted, batch=token)
            admitted = sum(admission.attempt_id is not None for admission in admissions)
            if admitted == 0:
                batches.forget(connection, token)
            else:
                batches.count_requests(connection, token, admitted)
            return admissions

    def update_batch(self, token: str, status: batches.BatchStatus, batch_id: str | None = None) -> None:
        """Store what the provider calls a batch, or that it has ended and all its results are here."""
        with self._writing() as connection:
            batches.update_batch(connection, token, status=status, batch_id=batch_id)

    def claim_batch(self, token: str) -> bool:
        """Become the one who collects a batch; False where another living process does."""
        owner = self._owner()
        with self._writing() as connection:
            return batches.claim(self._database, connection, token, owner)

    def open_batches(self, provider: str, base_url: str) -> list[batches.BatchRow]:
        """What has not ended at this endpoint, the oldest first, whichever run has handed it in."""
        with self._database.reading() as connection:
            return batches.open_batches(connection, provider, base_url)

    def open_orders(self, provider: str, base_url: str) -> list[batches.BatchOrder]:
        """The same, with what each was handed in for."""
        with self._database.reading() as connection:
            return batches.open_orders(connection, provider, base_url)

    def known_batches(self) -> set[str]:
        """The provider's ids of all batches that were ever handed in."""
        with self._database.reading() as connection:
            return batches.known_ids(connection)

    def adopt_batch(self, token: str, batch_id: str) -> None:
        """Store the id of a batch that has just been created, and see to it that its requests count.

        Whoever took its owner for dead may have closed it as never handed in: then they are `unknown` until collected.
        """
        with self._writing() as connection:
            if rows := batches.closed_too_early(connection, token):
                self._writer.reopen_as_unknown(connection, rows)
            batches.update_batch(connection, token, status="running", batch_id=batch_id)

    def is_claimed(self, key: str) -> bool:
        """Whether somebody asks for this key right now."""
        return self._reader.is_claimed(key)

    def batches_holding(self, keys: Iterable[str]) -> set[str]:
        """The tokens of the batches that hold a request for one of these keys."""
        return self._reader.batches_holding(keys)

    def in_batch(self, token: str) -> list[batches.BatchedAttempt]:
        """The requests of a batch that no result has closed."""
        with self._database.reading() as connection:
            return list(batches.in_flight(connection, token))

    def renew_lease(self) -> None:
        """Tell the other machines that this one lives; to be called every `owners.RENEW_SECONDS`."""
        owner = self._owner()
        with self._writing() as connection:
            owners.renew(self._database, connection, owner)

    def close_orphans(self) -> int:
        """Turn what dead processes left in flight into `unknown`, and return how many that were.

        What this process could not write before is written first: nobody else may close it as long as it lives.
        """
        left = _taken(self._left)
        try:
            self.settle_each(left)
        except BaseException:
            self.leave(left)
            raise
        with self._writing() as connection:
            return owners.close_orphans(self._database, self._writer, connection)

    def give_up(self, key: str, said: str, num_attempts: int, *, is_failing: bool = False) -> bool:
        """Put aside a key that has no usable answer after enough attempts; whether it is. See `giving_up`."""
        with self._writing() as connection:
            return giving_up.give_up(self._database, connection, key, said, num_attempts, is_failing=is_failing)

    def take_back(self, keys: Sequence[str]) -> None:
        """Ask for these again, though they were refused or put aside: they, or the endpoint, were not at fault."""
        with self._writing() as connection:
            giving_up.take_back(self._database, connection, keys)

    def leave(self, settlements: Iterable[Settlement]) -> None:
        """Keep what cannot be written now; it is written by whoever in this process next closes orphans."""
        self._left.extend(settlements)

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

    def _begin(
        self, connection: Connection, owner: int, wanted: Sequence[tuple[AttemptPlan, Caps]], batch: str | None = None
    ) -> list[Admission]:
        begins = [Begin(self._next_id(owner), owner, plan, caps, batch) for plan, caps in wanted]
        self._begun = [Settlement(begin.attempt_id, begin.plan, "failed", error=IN_DOUBT) for begin in begins]
        return self._writer.begin(connection, begins, self._database.now(connection))

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._lock:
            self._begun = []
            try:
                with self._database.writing() as connection:
                    yield connection
            except BaseException:
                self._writer.forget_prices()
                self.leave(self._begun)  # its commit may have been carried out all the same
                raise

    def _owner(self) -> int:
        """Who this object is in the ledger.

        Registered by a transaction of its own: were it lost with the first begin, a begin that was carried out all the
        same would be a claim of a living owner whom nobody remembers.
        """
        with self._lock:
            if self._owner_id is None:
                with self._database.writing() as connection:
                    owner_id = owners.register(self._database, connection)
                self._last_id, self._owner_id = owner_id * IDS_AN_OWNER, owner_id
            return self._owner_id

    def _next_id(self, owner: int) -> int:
        self._last_id += 1
        assert self._last_id // IDS_AN_OWNER == owner
        return self._last_id


def open_ledger() -> Ledger:
    """The ledger of `default_url`, one object a process: what a task of a flow has begun, its retry goes on with."""
    return _opened(default_url())


@lru_cache(maxsize=4)
def _opened(url: str) -> Ledger:
    return Ledger(url)


@cache
def _left_in(ledger_id: str) -> deque[Settlement]:  # noqa: ARG001 - the cache's key
    """What this process could not write into one ledger, whichever object was to."""
    return deque()


def _taken(left: deque[Settlement]) -> list[Settlement]:
    taken: list[Settlement] = []
    with suppress(IndexError):
        while True:
            taken.append(left.popleft())
    return taken
