"""One recipe's inbox: deliveries land in it, each once, and are sealed into segments.

    landed/<id>-….jsonl    the prompts of one delivery; counted only if the index names the file
    segments/000001.jsonl  what a seal took, in the order in which it landed
    index.db               see `potstill.inbox.database`

All of it is readable by its owner only: prompts are as they were sent, personal data included.
"""

import hashlib
import logging
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple, Self

from filelock import FileLock

from potstill.artifacts import sync
from potstill.errors import DataError, InboxError, PotstillError
from potstill.inbox.database import Database

LANDED, SEGMENTS = "landed", "segments"
FOLDER = "inbox"
NAME = r"[a-z0-9][a-z0-9-]{0,62}"
"""As the recipe's field has it."""
STRAY_SECONDS = 3600
"""A file that no delivery owns is what a crash or a refused delivery left; one that is being written is younger."""

log = logging.getLogger(__name__)


class Landing(NamedTuple):
    """What became of a delivery."""

    outcome: Literal["landed", "duplicate", "conflict", "empty"]
    """duplicate: the same id and body were accepted before; conflict: another body was; empty: no prompt to keep."""
    num_prompts: int = 0


class Landed(NamedTuple):
    """Deliveries among those that wait."""

    num_deliveries: int
    num_prompts: int
    last: int
    """The sequence number of the newest one."""
    last_at: float
    """When the newest one landed, in seconds since the epoch."""


def inbox_path(home: Path, recipe_name: str) -> Path:
    """Errors: `DataError` for what cannot be a recipe's name, and so might leave the inbox."""
    if not re.fullmatch(NAME, recipe_name):
        raise DataError(f"{recipe_name!r} is no recipe's name: lower-case letters, digits and hyphens")
    return home / FOLDER / recipe_name


class Inbox:
    """One recipe's inbox, made (0700) where it is not there; for any thread. Errors: `InboxError`, `DataError`."""

    def __init__(self, home: Path, recipe_name: str) -> None:
        self.path = inbox_path(home, recipe_name)
        self._landed = self.path / LANDED
        self._segments = self.path / SEGMENTS
        try:
            for directory in (self.path.parent, self.path, self._landed, self._segments):
                if not directory.is_dir():
                    directory.mkdir(mode=0o700, exist_ok=True)
                    sync(directory.parent)
        except OSError as error:
            raise InboxError(f"the inbox {self.path} cannot be made ({error.strerror})") from None
        self.database = Database(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.database.close()

    def find(self, webhook_id: str, body_sha256: str) -> Landing | None:
        """Duplicate or conflict where a delivery with this id was accepted, at any time; else None."""
        with self.database.reading() as connection:
            found = connection.execute(
                "SELECT body_sha256 FROM deliveries WHERE id_sha256 = ?", (_sha256(webhook_id),)
            ).fetchone()
        return None if found is None else Landing("duplicate" if found[0] == body_sha256 else "conflict")

    def land(self, webhook_id: str, body_sha256: str, lines: Iterable[bytes]) -> Landing:
        """Keep the lines of one delivery; "landed" means that they are on the disk, and will be in one segment once.

        A crash before it returns, or an error out of `lines`, leaves nothing that counts.
        """
        if (before := self.find(webhook_id, body_sha256)) is not None:
            return before
        identity = _sha256(webhook_id)
        path: Path | None = None
        may_count = False
        try:
            descriptor, name = tempfile.mkstemp(".jsonl", f"{identity[:16]}-", self._landed)  # of mode 0600
            path = Path(name)
            num_prompts = _write(descriptor, lines)
            if not num_prompts:
                return Landing("empty")
            sync(self._landed)
            may_count = True  # a commit that fails may yet be found on the disk: then the file must be there
            other = self._accept((identity, body_sha256, num_prompts, time.time(), path.name))
            may_count = other is None
            return other or Landing("landed", num_prompts)
        except OSError as error:
            if isinstance(error, PotstillError):
                raise
            raise InboxError(f"the inbox {self.path} cannot be written ({error.strerror}): free some room") from None
        finally:
            if path is not None and not may_count:
                path.unlink(missing_ok=True)

    def _accept(self, row: tuple[str, str, int, float, str]) -> Landing | None:
        """Commit a delivery; None, or what became of it where another with its id was faster."""
        with self.database.transaction() as connection:
            try:
                connection.execute(
                    "INSERT INTO deliveries (id_sha256, body_sha256, num_prompts, landed_at, file)"
                    " VALUES (?, ?, ?, ?, ?)",
                    row,
                )
            except sqlite3.IntegrityError:
                [same] = connection.execute(
                    "SELECT body_sha256 FROM deliveries WHERE id_sha256 = ?", row[:1]
                ).fetchone()
                return Landing("duplicate" if same == row[1] else "conflict")
        return None

    def num_waiting(self) -> int:
        """Prompts that have landed and are in no segment."""
        return self.waiting().num_prompts

    def waiting(self) -> Landed:
        """The deliveries in no segment."""
        with self.database.reading() as connection:
            found = connection.execute(
                "SELECT COUNT(*), COALESCE(SUM(num_prompts), 0), COALESCE(MAX(seq), 0), COALESCE(MAX(landed_at), 0)"
                " FROM deliveries WHERE file IS NOT NULL"
            )
            return Landed(*found.fetchone())

    def seal(self, on_step: Callable[[str], None] = lambda _: None) -> list[Path]:
        """See `potstill.inbox.seal`; `on_step` is told of each step before it is taken, so that a test can end it there."""
        with FileLock(self.path / "seal.lock", mode=0o600):
            try:
                on_step("complete")
                self._complete(on_step)
                on_step("claim")
                if self._claim():
                    self._complete(on_step)
                on_step("sweep")
                self._sweep()
            except OSError as error:
                if isinstance(error, PotstillError):
                    raise
                raise InboxError(f"the inbox {self.path} cannot be sealed ({error}): free some room") from None
            return sorted(self._segments.glob("[0-9]*.jsonl"))

    def _claim(self) -> bool:
        """Give all that has landed to the next segment; False where nothing has."""
        with self.database.transaction() as connection:
            [last] = connection.execute("SELECT COALESCE(MAX(segment), 0) FROM deliveries").fetchone()
            claimed = connection.execute(
                "UPDATE deliveries SET segment = ? WHERE file IS NOT NULL AND segment IS NULL", (last + 1,)
            )
            return claimed.rowcount > 0

    def _complete(self, on_step: Callable[[str], None]) -> None:
        """Write each segment that was claimed, then let go of the files that it was made of."""
        with self.database.reading() as connection:
            rows = connection.execute(
                "SELECT segment, file FROM deliveries WHERE segment IS NOT NULL AND file IS NOT NULL ORDER BY seq"
            ).fetchall()
        for segment in sorted({number for number, _ in rows}):
            files = [self._landed / name for number, name in rows if number == segment]
            path = self._segments / f"{segment:06}.jsonl"
            if not path.exists():
                on_step("write")
                self._write_segment(path, files, on_step)
            sync(self._segments)
            on_step("unlink")
            for index, file in enumerate(files):
                file.unlink(missing_ok=True)
                if index == 0:
                    on_step("unlink the others")
            on_step("note")
            with self.database.transaction() as connection:
                connection.execute("UPDATE deliveries SET file = NULL WHERE segment = ?", (segment,))

    def _write_segment(self, path: Path, files: list[Path], on_step: Callable[[str], None]) -> None:
        temporary = path.with_suffix(".tmp")  # the lock is held: nobody else writes it
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        lost = 0
        with open(descriptor, "wb") as segment:  # noqa: PTH123 - a descriptor
            for file in files:
                try:
                    with file.open("rb") as landed:
                        shutil.copyfileobj(landed, segment)
                except FileNotFoundError:
                    lost += 1
            segment.flush()
            os.fsync(segment.fileno())
        if lost:
            log.error("%s: the prompts of %d deliveries are gone, somebody has deleted their files", path, lost)
        on_step("rename")
        temporary.rename(path)

    def _sweep(self) -> None:
        """Delete what crashed or refused deliveries left."""
        with self.database.reading() as connection:
            owned = {name for (name,) in connection.execute("SELECT file FROM deliveries WHERE file IS NOT NULL")}
        limit = time.time() - STRAY_SECONDS
        with os.scandir(self._landed) as entries:
            for entry in entries:
                if entry.name not in owned and entry.stat(follow_symlinks=False).st_mtime < limit:
                    Path(entry.path).unlink(missing_ok=True)


def _write(descriptor: int, lines: Iterable[bytes]) -> int:
    """The lines in a file, on the disk; how many there are."""
    count = 0
    with open(descriptor, "wb") as file:
        for line in lines:
            file.write(line + b"\n")
            count += 1
        file.flush()
        os.fsync(file.fileno())
    return count


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
