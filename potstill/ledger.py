"""The ledger: every HTTP attempt is a row before it leaves, every answer is stored before it counts.

An attempt's row is also its reservation: while it is in flight, its upper bound counts against the cap of its run. What
a dead process left in flight becomes `unknown` and counts at that bound for ever.

SQLite in WAL mode with synchronous=NORMAL: a committed answer survives the death of the process; a power cut may lose
the last moments.
"""

import re
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson
from sqlalchemy import Connection, create_engine, event, insert, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from potstill.errors import UsageError
from potstill.home import potstill_home
from potstill.ledger_schema import SCHEMA_VERSION, Usd, answers, attempts, meta, metadata, runs
from potstill.llm.messages import Reply
from potstill.llm.pricing import Rates
from potstill.owner import Owner, this_process
from potstill.records import Usage

Purpose = Literal["teach"]
Status = Literal["in_flight", "answered", "unusable", "refused", "failed", "unknown"]
"""unusable: a 200 that cannot be used, billed; refused: for what was asked; failed: for now; unknown: perhaps billed."""
KEYS_A_QUERY = 500
BUSY_SECONDS = 30
READING = "potstill_reading"
REMEDY = "Give an address such as sqlite:///ledger.db"


class AttemptPlan(NamedTuple):
    """What is about to be sent."""

    answer_key: str
    prompt_id: str
    run: str
    purpose: Purpose
    provider: str
    model: str
    bound_usd: Decimal
    rates: Rates


class Answer(NamedTuple):
    """A stored answer."""

    reply: Reply
    seconds: float


class KeyCost(NamedTuple):
    """What one answer key has cost, over all its attempts."""

    attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    """The sum of what is known."""
    unknown_usd: Decimal = Decimal(0)
    """The upper bound of attempts whose bill nobody knows; not in `cost_usd`."""
    refused: bool = False
    """The provider rejects this request for what it is: asking again would not help."""
    last_error: str | None = None


class Ledger:
    """One database of attempts and answers; safe to use from several threads and processes.

    Errors: `UsageError` for an address that SQLAlchemy cannot open.
    """

    def __init__(self, url: str | None = None) -> None:
        parsed = _parse(url or f"sqlite:///{potstill_home() / 'ledger.db'}")
        self.url = parsed.render_as_string(hide_password=True)
        try:
            if parsed.database and parsed.get_backend_name() == "sqlite":
                Path(parsed.database).absolute().parent.mkdir(parents=True, exist_ok=True)
            self._engine = create_engine(parsed)
            if parsed.get_backend_name() == "sqlite":
                event.listen(self._engine, "connect", _set_up_sqlite)
                event.listen(self._engine, "begin", _begin_sqlite)
            with self._engine.begin() as connection:
                metadata.create_all(connection)
                self.id = self._identify(connection)
        except ImportError as error:
            raise UsageError(f"ledger {self.url}: {error}: pip install 'potstill[postgres]'") from None
        except (SQLAlchemyError, OSError) as error:
            raise UsageError(f"ledger {self.url}: {str(error).partition(chr(10))[0]}. {REMEDY}") from None

    def find_answers(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The stored answers among these keys."""
        query = select(answers, attempts).join(attempts, attempts.c.id == answers.c.attempt_id)
        found: dict[str, Answer] = {}
        with self._reading() as connection:
            for chunk in _chunks(keys):
                for row in connection.execute(query.where(answers.c.answer_key.in_(chunk))).mappings():
                    found[row[answers.c.answer_key]] = _answer(row)
        return found

    def find_missing(self, keys: Iterable[str]) -> set[str]:
        """The keys among these that have no answer and were not refused for good: what is still to be asked."""
        missing: set[str] = set()
        with self._reading() as connection:
            for chunk in _chunks(keys):
                query = select(answers.c.answer_key).where(answers.c.answer_key.in_(chunk))
                missing |= set(chunk) - set(connection.scalars(query))
        return missing - {key for key, cost in self.costs(missing).items() if cost.refused}

    def begin(self, plan: AttemptPlan, cap_usd: Decimal | None) -> int | None:
        """Record an attempt and reserve its upper bound; None, and no row, where the cap does not admit it."""
        with self._engine.begin() as connection:
            self._open_run(connection, plan.run)
            bound = literal(plan.bound_usd, Usd())  # untyped, the sum of columns would bind it in dollars
            reserve = update(runs).where(runs.c.run == plan.run).values(reserved_usd=runs.c.reserved_usd + bound)
            if cap_usd is not None:
                reserve = reserve.where(runs.c.spent_usd + runs.c.reserved_usd + bound <= literal(cap_usd, Usd()))
            if connection.execute(reserve).rowcount == 0:
                return None
            row = {
                **plan._asdict(),
                "status": "in_flight",
                "price": orjson.dumps(_price(plan.rates)).decode(),
                "owner": this_process().model_dump_json(),
                "started_at": time.time(),
            }
            del row["rates"]
            return connection.execute(insert(attempts).values(row)).inserted_primary_key[0]  # pyright: ignore[reportOptionalSubscript]

    def settle(
        self,
        attempt_id: int,
        plan: AttemptPlan,
        *,
        status: Status,
        reply: Reply | None,
        usage: Usage | None,
        http_status: int | None,
        error: str | None,
        seconds: float,
    ) -> Decimal:
        """Close an attempt, release its reservation and store its answer, in one transaction; returns its known cost."""
        cost = plan.rates.cost(usage) if usage is not None else Decimal(0)
        unknown = status == "unknown"
        counted = plan.bound_usd if unknown else cost
        tokens = usage or Usage()
        with self._engine.begin() as connection:
            # a clock that was set may have made this process look dead: then its bound is counted as spent already
            before = connection.scalar(select(attempts.c.status).where(attempts.c.id == attempt_id).with_for_update())
            connection.execute(
                update(attempts)
                .where(attempts.c.id == attempt_id)
                .values(
                    status=status,
                    http_status=http_status,
                    error=error,
                    input_tokens=tokens.input,
                    cached_input_tokens=tokens.cached_input,
                    output_tokens=tokens.output,
                    reasoning_tokens=tokens.reasoning,
                    cost_usd=None if unknown else cost,
                    seconds=seconds,
                )
            )
            if before == "in_flight":
                self._release(connection, plan.run, plan.bound_usd, counted)
            else:
                self._release(connection, plan.run, Decimal(0), counted - plan.bound_usd)
            if reply is not None:
                stored = {
                    "answer_key": plan.answer_key,
                    "attempt_id": attempt_id,
                    "message": orjson.dumps(reply.message).decode(),
                    "finish_reason": reply.finish_reason,
                }
                connection.execute(self._insert_if_new(answers, stored))
        return cost

    def close_orphans(self) -> int:
        """Turn what dead processes left in flight into `unknown`, and return how many that were."""
        columns = (attempts.c.id, attempts.c.run, attempts.c.bound_usd, attempts.c.owner)
        in_flight = select(*columns).where(attempts.c.status == "in_flight").with_for_update()
        closed = 0
        with self._engine.begin() as connection:
            dead: dict[str, bool] = {}
            for row in connection.execute(in_flight).all():
                if row.owner not in dead:
                    dead[row.owner] = Owner.model_validate_json(row.owner).is_dead()
                if dead[row.owner]:
                    values = {"status": "unknown", "error": "the process died while it was in flight"}
                    connection.execute(update(attempts).where(attempts.c.id == row.id).values(values))
                    self._release(connection, row.run, row.bound_usd, row.bound_usd)
                    closed += 1
        return closed

    def costs(self, keys: Iterable[str]) -> dict[str, KeyCost]:
        """What each of these keys has cost in all its attempts, whichever run made them."""
        found: dict[str, KeyCost] = {}
        with self._reading() as connection:
            for chunk in _chunks(keys):
                query = select(attempts).where(attempts.c.answer_key.in_(chunk)).order_by(attempts.c.id)
                for row in connection.execute(query):
                    before = found.get(row.answer_key, KeyCost())
                    found[row.answer_key] = KeyCost(
                        attempts=before.attempts + 1,
                        input_tokens=before.input_tokens + row.input_tokens,
                        output_tokens=before.output_tokens + row.output_tokens,
                        cost_usd=before.cost_usd + (row.cost_usd or 0),
                        unknown_usd=before.unknown_usd + (row.bound_usd if row.status == "unknown" else 0),
                        refused=row.status == "refused",
                        last_error=row.error,
                    )
        return found

    def committed_usd(self, run: str) -> Decimal:
        """What a run has spent and reserved: what its cap is compared with."""
        with self._reading() as connection:
            row = connection.execute(select(runs).where(runs.c.run == run)).one_or_none()
        return Decimal(0) if row is None else row.spent_usd + row.reserved_usd

    def _reading(self) -> Connection:
        return self._engine.connect().execution_options(**{READING: True})

    def _identify(self, connection: Connection) -> str:
        connection.execute(self._insert_if_new(meta, {"name": "id", "value": uuid.uuid4().hex[:12]}))
        connection.execute(self._insert_if_new(meta, {"name": "schema_version", "value": str(SCHEMA_VERSION)}))
        stored = {row.name: row.value for row in connection.execute(select(meta.c.name, meta.c.value))}
        if stored["schema_version"] != str(SCHEMA_VERSION):
            raise UsageError(
                f"ledger {self.url}: schema version {stored['schema_version']}, this Potstill knows {SCHEMA_VERSION}"
            )
        return stored["id"]

    def _open_run(self, connection: Connection, run: str) -> None:
        connection.execute(self._insert_if_new(runs, {"run": run, "spent_usd": Decimal(0), "reserved_usd": Decimal(0)}))

    def _release(self, connection: Connection, run: str, reserved: Decimal, spent: Decimal) -> None:
        values = {"reserved_usd": runs.c.reserved_usd - reserved, "spent_usd": runs.c.spent_usd + spent}
        connection.execute(update(runs).where(runs.c.run == run).values(values))

    def _insert_if_new(self, table: Any, row: dict[str, Any]) -> Any:
        dialect = sqlite if self._engine.dialect.name == "sqlite" else postgresql
        return dialect.insert(table).values(row).on_conflict_do_nothing()


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        shown = re.sub(r"//[^/]*@", "//***@", url)
        raise UsageError(f"ledger {shown}: {error}. {REMEDY}") from None
    if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
        raise UsageError(
            f"ledger {parsed.render_as_string(hide_password=True)}: neither SQLite nor PostgreSQL. {REMEDY}"
        )
    if parsed.get_backend_name() == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise UsageError(f"ledger {url}: a ledger in memory would forget what was paid. {REMEDY}")
    return parsed


def _answer(row: Any) -> Answer:
    message = orjson.loads(row[answers.c.message])
    usage = Usage(
        input=row[attempts.c.input_tokens],
        cached_input=row[attempts.c.cached_input_tokens],
        output=row[attempts.c.output_tokens],
        reasoning=row[attempts.c.reasoning_tokens],
    )
    reply = Reply(message, message.get("content") or "", row[answers.c.finish_reason], usage)
    return Answer(reply, row[attempts.c.seconds] or 0.0)


def _price(rates: Rates) -> dict[str, str]:
    return {
        "input_per_million": str(rates.input),
        "cached_input_per_million": str(rates.cached_input),
        "output_per_million": str(rates.output),
        "request": str(rates.request),
        "source": rates.source,
    }


def _chunks(keys: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(keys)
    while chunk := list(islice(iterator, KEYS_A_QUERY)):
        yield chunk


def _begin_sqlite(connection: Connection) -> None:
    """A writer takes its turn at once, so that what it read still holds when it writes; a reader blocks nobody."""
    is_reader = connection.get_execution_options().get(READING, False)
    connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    _switch_to_wal(connection)
    connection.execute("PRAGMA synchronous = NORMAL")


def _switch_to_wal(connection: Any) -> None:
    """Where several processes open a new database at once, SQLite turns all but one away without the busy timeout."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
