"""The index of an inbox: which deliveries were accepted, where their prompts lie, and which runs were started for them.

A delivery is accepted at the commit of its row, and at no other moment. SQLite, in WAL mode with a sync at each commit.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from potstill.artifacts import sync
from potstill.errors import InboxError, PotstillError

NAME = "index.db"
BUSY_SECONDS = 30.0

VERSION = 1
SCHEMA = """
CREATE TABLE deliveries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id_sha256 TEXT NOT NULL UNIQUE,   -- of the webhook's id
    body_sha256 TEXT NOT NULL,        -- of the request's body, as it was signed
    num_prompts INTEGER NOT NULL,
    landed_at REAL NOT NULL,          -- seconds since the epoch
    file TEXT,                        -- in landed/; NULL once its segment is whole
    segment INTEGER                   -- the segment that takes it, NULL before the first seal
);
CREATE INDEX waiting ON deliveries (num_prompts, landed_at) WHERE file IS NOT NULL;
CREATE TABLE starts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,         -- the idempotency key, of the deliveries that waited
    num_prompts INTEGER NOT NULL,
    decided_at REAL NOT NULL,
    started_at REAL,                  -- NULL until the orchestrator has it
    run_id TEXT
);
CREATE TABLE announced (seq INTEGER NOT NULL /* the last delivery that an event told of */);
INSERT INTO announced VALUES (0);
"""


class Database:
    """One connection, for any thread of this process; created (0600) where it is not there."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        self._lock = threading.RLock()
        with _naming(self.path), FileLock(directory / "index.lock", mode=0o600):  # one of two creators waits
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # -wal and -shm take over its mode
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            [version] = self._connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                with self.transaction() as connection:
                    for statement in SCHEMA.split(";\n"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {VERSION}")
                sync(directory)
        if version not in {0, VERSION}:
            self.close()
            raise InboxError(f"{self.path} is of version {version}, which this Potstill does not know: update Potstill")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: what it has read still holds when it writes; on disk when the block is left."""
        with self._lock, _naming(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _naming(self.path):
            yield self._connection

    def close(self) -> None:
        with self._lock:
            self._connection.close()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if isinstance(error, PotstillError):
            raise
        raise InboxError(f"the inbox's index {path} cannot be used ({error}): see that its disk has room") from None
