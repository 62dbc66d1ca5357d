"""The database that a ledger lives in: SQLite, or PostgreSQL for several machines.

One writer at a time in either: SQLite's `BEGIN IMMEDIATE`, a transaction's advisory lock on PostgreSQL. What a writer
has read therefore still holds when it writes. A reader blocks nobody.
"""

import os
import re
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Engine,
    String,
    any_,
    bindparam,
    create_engine,
    event,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError

from potstill.errors import LedgerError, UsageError
from potstill.home import potstill_home
from potstill.ledger.migration import migrate
from potstill.ledger.schema import SCHEMA_VERSION, meta, metadata
from potstill.texts import masked

BUSY_SECONDS = 30
PATIENCE = {"connect_timeout": 5, "tcp_user_timeout": 10_000, "keepalives_idle": 5, "keepalives_interval": 5}
"""libpq's, unless the address says otherwise: without them a server that vanishes is waited for by the hour, and Ctrl-C too."""
SESSION_SETTINGS = {
    "idle_in_transaction_session_timeout": "15s",
    "lock_timeout": f"{BUSY_SECONDS}s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
"""PostgreSQL's, unless the address says otherwise. A machine that is stopped or vanishes in a transaction holds the writers'
lock: the server ends it before the lease of those who wait may run out, and before their patience does."""
LOCK_NOT_AVAILABLE = "55P03"
KEYS_A_QUERY = 2000
LEDGER_VARIABLE = "POTSTILL_LEDGER"
REMEDY = "Give an address such as sqlite:///ledger.db"
SYNCHRONOUS = ("NORMAL", "FULL")
"""In a SQLite address, `?synchronous=FULL` writes each commit to the disk: then a power cut loses nothing either. NORMAL,
the default, does so at each checkpoint: a power cut may lose the last commits, the death of the process none."""
READING = "potstill_reading"
WRITERS_LOCK = 0x706F7473
"""Any number that no other program on this database takes."""


class Database:
    """A connection pool on one ledger's database, whose tables are there and of this version.

    Args:
        url: SQLAlchemy's form; None for `default_url`.

    Errors: `UsageError` for an address that SQLAlchemy cannot open; later, `LedgerError` where the database fails.
    """

    def __init__(self, url: str | None = None) -> None:
        parsed, synchronous = _parse(url or default_url())
        self.url = _shown(parsed)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        try:
            if parsed.database and self.is_sqlite:
                Path(parsed.database).absolute().parent.mkdir(parents=True, exist_ok=True)
            self._engine = self._open(parsed, synchronous)
            self.id = self._find_id() or self._create()
        except ImportError as error:
            raise UsageError(f"ledger {self.url}: {error}: pip install 'potstill[postgres]'") from None
        except (LedgerError, SQLAlchemyError, OSError) as error:
            said = str(error.__cause__ or error).partition("\n")[0]
            raise UsageError(f"ledger {self.url}: {said}. {REMEDY}") from None

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """The only writing transaction of this moment."""
        with self._explained(), self._engine.begin() as connection:
            if not self.is_sqlite:
                connection.execute(text(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})"))
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view."""
        with self._explained(), self._engine.connect().execution_options(**{READING: True}) as connection:
            yield connection

    def among(self, column: ColumnElement[str]) -> ColumnElement[bool]:
        """The condition that a column is one of the values in parameter `keys`, which `keys_parameter` makes."""
        if self.is_sqlite:
            return column.in_(select(func.json_each(bindparam("keys", type_=String)).table_valued("value").c.value))
        return column == any_(bindparam("keys", type_=ARRAY(String)))

    def keys_parameter(self, keys: list[str]) -> dict[str, Any]:
        return {"keys": orjson.dumps(keys).decode() if self.is_sqlite else keys}

    def insert_if_new(self, table: Any) -> Any:
        """An INSERT that leaves a row that is there already as it is."""
        return (sqlite if self.is_sqlite else postgresql).insert(table).on_conflict_do_nothing()

    def now(self, connection: Connection) -> float:
        """Seconds since the epoch, by the clock that all who share this database share."""
        if self.is_sqlite:
            return time.time()
        return float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0)

    def close(self) -> None:
        self._engine.dispose()

    def _open(self, parsed: URL, synchronous: str) -> Engine:
        limits = (
            {} if self.is_sqlite else {name: seconds for name, seconds in PATIENCE.items() if name not in parsed.query}
        )
        engine = create_engine(parsed, pool_pre_ping=not self.is_sqlite, connect_args=limits)
        if self.is_sqlite:
            event.listen(engine, "connect", lambda connection, _: _set_up_sqlite(connection, synchronous))
            event.listen(engine, "begin", _begin_sqlite)
        else:
            event.listen(engine, "connect", lambda connection, _: _set_up_postgresql(connection))
        return engine

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            said = str(error).partition("\n")[0]
            if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == LOCK_NOT_AVAILABLE:
                said = "another session keeps it locked: pg_locks on its server names that session"
            raise LedgerError(f"ledger {self.url}: {said}. Run the same again once it works") from error

    def _find_id(self) -> str | None:
        """The id of a ledger that is there, in this version."""
        with self.reading() as connection:
            if not inspect(connection).has_table(meta.name):
                return None
            stored = {row.name: row.value for row in connection.execute(select(meta.c.name, meta.c.value))}
        return stored.get("id") if stored.get("schema_version") == str(SCHEMA_VERSION) else None

    def _create(self) -> str:
        with self.writing() as connection:
            migrate(connection, self.url)
            metadata.create_all(connection)
            insert = self.insert_if_new(meta)
            connection.execute(insert, {"name": "id", "value": uuid.uuid4().hex[:12]})
            connection.execute(insert, {"name": "schema_version", "value": str(SCHEMA_VERSION)})
        found = self._find_id()
        assert found is not None
        return found


def default_url() -> str:
    """The ledger that `POTSTILL_LEDGER` names, else `ledger.db` in the state directory."""
    return os.environ.get(LEDGER_VARIABLE) or f"sqlite:///{potstill_home() / 'ledger.db'}"


def is_fault_of_data(error: BaseException) -> bool:
    """Whether a transaction failed for what it was to write: it would fail again, however often it is tried."""
    cause = error.__cause__ if isinstance(error, LedgerError) else error
    return isinstance(cause, (DataError, IntegrityError, ProgrammingError, ValueError, TypeError, OverflowError))


def chunks(keys: Iterable[str]) -> Iterator[list[str]]:
    """Lists of as many keys as one query takes."""
    iterator = iter(keys)
    while chunk := list(islice(iterator, KEYS_A_QUERY)):
        yield chunk


def _parse(url: str) -> tuple[URL, str]:
    """The address, and how SQLite is to write: see `SYNCHRONOUS`."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # which may repeat a password that stands where the port should
        shown = re.sub(r"(?<=://).*", "…", masked(url), flags=re.DOTALL)
        raise UsageError(f"ledger {shown}: no address of a database. {REMEDY}") from None
    if "@" in (parsed.host or ""):
        raise UsageError(f"ledger {_shown(parsed)}: an @ in a user's name or password is written as %40")
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
        raise UsageError(f"ledger {_shown(parsed)}: neither SQLite nor PostgreSQL. {REMEDY}")
    if parsed.get_backend_name() == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise UsageError(f"ledger {url}: a ledger in memory would forget what was paid. {REMEDY}")
    if parsed.get_backend_name() != "sqlite" or "synchronous" not in parsed.query:
        return parsed, SYNCHRONOUS[0]
    synchronous = str(parsed.query["synchronous"]).upper()
    if synchronous not in SYNCHRONOUS:
        raise UsageError(f"ledger {url}: synchronous is one of {', '.join(SYNCHRONOUS)}")
    return parsed.difference_update_query(["synchronous"]), synchronous


def _shown(url: URL) -> str:
    """What may be printed of an address. One of SQLite is a path."""
    given = url.render_as_string(hide_password=False)
    return given if url.get_backend_name() == "sqlite" else masked(given)


def _begin_sqlite(connection: Connection) -> None:
    """A writer takes its turn at once; a reader blocks nobody."""
    is_reader = connection.get_execution_options().get(READING, False)
    connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")


def _set_up_sqlite(connection: Any, synchronous: str) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    _switch_to_wal(connection)
    connection.execute(f"PRAGMA synchronous = {synchronous}")


def _set_up_postgresql(connection: Any) -> None:
    """`SESSION_SETTINGS`, but for what the address or PGOPTIONS have set."""
    settings = (list(SESSION_SETTINGS), list(SESSION_SETTINGS.values()))
    connection.execute(
        "SELECT set_config(name, given.setting, false) FROM unnest(%s::text[], %s::text[]) AS given (name, setting)"
        " JOIN pg_settings USING (name) WHERE source <> 'client'",
        settings,
    )
    connection.commit()


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
