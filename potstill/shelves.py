"""Where the versions and aliases of one recipe lie: in a directory or, where `POTSTILL_STORE` is set, in a bucket.

In the bucket, below releases/<recipe>/:
  versions/<sha12>/   as on a disk, version.json last; what the digest does not cover carries its own in its name
  aliases.json        the aliases and the line of the log that moved them, replaced by one conditional PUT
  promotions.jsonl    the log; its last line may be missing until somebody reads aliases.json, which holds it

So a move and its line appear at once: who is killed has moved nothing, or has moved and logged. Of two who move at once, one
is refused, reads again, and starts from what the other made of it.
"""

import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from filelock import FileLock
from pydantic import ValidationError

from potstill.approval import Approval
from potstill.artifacts import digest_files, sync
from potstill.artifacts.copies import download
from potstill.errors import ArtifactDamagedError, StoreUnreachableError
from potstill.object_store import ObjectStore, open_remote
from potstill.promotions import (
    ALIASES_FILE,
    PROMOTIONS_FILE,
    Aliases,
    Move,
    Promotion,
    move,
    parse_promotions,
    promotions,
    read_aliases,
)
from potstill.versions import ADAPTER, VERSION_FILE, Version, parse_version, read_version, verify

READERS = 8
"""So many versions of a bucket are read at once."""

log = logging.getLogger(__name__)


class State(NamedTuple):
    """Aliases and log as they were at one moment."""

    aliases: Aliases
    lines: list[Promotion]
    etag: str | None = None
    """Of the aliases, in a bucket that has some."""
    unlogged: Promotion | None = None
    """The last move, where the log in the bucket does not hold it yet."""


class Shelf:
    """In a directory. Who writes holds the lock; who reads needs none."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = FileLock(directory / ".lock")

    def exists(self) -> bool:
        return self.directory.is_dir()

    @contextmanager
    def lock(self) -> Iterator[None]:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock:
            yield

    def names(self) -> list[str]:
        """The versions that are whole, as far as a look at their records tells."""
        return sorted(path.parent.name for path in (self.directory / "versions").glob(f"*/{VERSION_FILE}"))

    def holds(self, version: str) -> bool:
        return self._place(version).is_dir()

    def read(self, version: str) -> Version:
        """The record of a version. Errors: `ArtifactDamagedError`."""
        return read_version(self._place(version))

    def read_all(self) -> list[Version]:
        return [self.read(version) for version in self.names()]

    def bring(self, version: str) -> Path:
        """The directory of a version."""
        return self._place(version)

    def workplace(self, version: str) -> Path:
        """Where a version is put together."""
        return self.directory / "tmp" / version

    def add(self, version: Version) -> None:
        """Put what lies in its workplace on the shelf, in one step."""
        workplace, final = self.workplace(version.version), self._place(version.version)
        final.parent.mkdir(exist_ok=True)
        workplace.rename(final)
        sync(final.parent)
        sync(final.parents[1])

    def state(self) -> State:
        return State(read_aliases(self.directory), promotions(self.directory))

    def aliases(self) -> Aliases:
        return read_aliases(self.directory)

    def move(
        self, before: State, moved: Aliases, what: Move, decision_digest: str | None, approval: Approval | None = None
    ) -> bool:
        """Log a move and make it; False where the aliases are no longer what they were before."""
        move(self.directory, before.aliases, moved, what, decision_digest, approval)
        return True

    def _place(self, version: str) -> Path:
        return self.directory / "versions" / version


class _AliasesObject(Aliases):
    move: Promotion | None = None
    """The move that led here."""


class BucketShelf(Shelf):
    """In a bucket; the directory keeps verified copies of versions, and nothing that can change."""

    def __init__(self, directory: Path, remote: ObjectStore) -> None:
        super().__init__(directory)
        self._remote = remote
        self._uri = f"releases/{directory.name}"

    def exists(self) -> bool:
        return bool(self.names())

    def names(self) -> list[str]:
        return [version for _, version in _versions_in(self._remote, self._uri)]

    def holds(self, version: str) -> bool:
        return self._remote.read(f"{self._uri}/versions/{version}/{VERSION_FILE}") is not None

    def read(self, version: str) -> Version:
        return self._record(version)[0]

    def read_all(self) -> list[Version]:
        with ThreadPoolExecutor(READERS) as readers:
            return list(readers.map(self.read, self.names()))

    def bring(self, version: str) -> Path:
        """The directory of a version, every byte verified; downloaded where it is not, or no longer, whole here."""
        final, workplace = self._place(version), self.workplace(version)
        record, raw = self._record(version)
        with self.lock():
            if _is_copy(final, raw):
                return final
            uri = f"{self._uri}/versions/{version}"
            objects = {name: _object_name(name, digest) for name, digest in record.files.items()}
            download(self._remote, uri, objects, workplace)
            found = digest_files(workplace)
            if wrong := sorted(name for name, digest in record.files.items() if found.get(name) != digest):
                shutil.rmtree(workplace)
                raise ArtifactDamagedError(
                    f"{self._remote.url(uri)}: {', '.join(wrong)} differ from {VERSION_FILE}: remove the version there "
                    "and release it again"
                )
            (workplace / VERSION_FILE).write_bytes(raw)
            verify(workplace)
            for name in (*record.files, VERSION_FILE):
                (workplace / name).chmod(0o444)
                sync(workplace / name)
            self._place_copy(workplace, final)
        return final

    def add(self, version: Version) -> None:
        """Upload it, its record last. Where another machine was first with the same student, its version is the one."""
        workplace, uri = self.workplace(version.version), f"{self._uri}/versions/{version.version}"
        for name, digest in version.files.items():
            self._remote.upload(workplace / name, f"{uri}/{_object_name(name, digest)}")
        self._remote.replace(f"{uri}/{VERSION_FILE}", (workplace / VERSION_FILE).read_bytes(), None)
        self._place_copy(workplace, self._place(version.version))

    def aliases(self) -> Aliases:
        return self._read_aliases()[0]

    def state(self) -> State:
        now, last, etag = self._read_aliases()
        lines, _ = self._read_log()
        unlogged = last if last is not None and last not in lines else None
        return State(now, [*lines, unlogged] if unlogged else lines, etag, unlogged)

    def move(
        self, before: State, moved: Aliases, what: Move, decision_digest: str | None, approval: Approval | None = None
    ) -> bool:
        assert moved.champion is not None
        self._remote.require_conditions()
        if before.unlogged is not None:
            self._log(before.unlogged)
        line = Promotion(
            what=what,
            from_version=before.aliases.champion,
            to_version=moved.champion,
            at=datetime.now(UTC),
            decision_digest=decision_digest,
            approval=approval,
        )
        content = _AliasesObject(**moved.model_dump(), move=line).model_dump_json(indent=2).encode()
        if not self._remote.replace(f"{self._uri}/{ALIASES_FILE}", content, before.etag):
            return False
        try:
            self._log(line)
        except StoreUnreachableError as error:  # the move is made: to fail now would have it made twice
            log.warning("the next move completes %s: %s", PROMOTIONS_FILE, error)
        return True

    def _log(self, line: Promotion) -> None:
        """Append a line, unless somebody has done it."""
        while True:
            lines, etag = self._read_log()
            if line in lines:
                return
            content = "".join(f"{known.model_dump_json()}\n" for known in (*lines, line)).encode()
            if self._remote.replace(f"{self._uri}/{PROMOTIONS_FILE}", content, etag):
                return

    def _read_aliases(self) -> tuple[Aliases, Promotion | None, str | None]:
        name = f"{self._uri}/{ALIASES_FILE}"
        blob = self._remote.read(name)
        if blob is None:
            return Aliases(), None, None
        try:
            found = _AliasesObject.model_validate_json(blob.content)
        except ValidationError:
            raise ArtifactDamagedError(
                f"{self._remote.url(name)} cannot be read: mend it by hand, {PROMOTIONS_FILE} tells the moves"
            ) from None
        return Aliases(**found.model_dump(exclude={"move"})), found.move, blob.etag

    def _read_log(self) -> tuple[list[Promotion], str | None]:
        name = f"{self._uri}/{PROMOTIONS_FILE}"
        blob = self._remote.read(name)
        if blob is None:
            return [], None
        return parse_promotions(blob.content, self._remote.url(name)), blob.etag

    def _record(self, version: str) -> tuple[Version, bytes]:
        name = f"{self._uri}/versions/{version}/{VERSION_FILE}"
        blob = self._remote.read(name)
        try:
            record = parse_version(blob.content) if blob else None
        except ValidationError:
            record = None
        if blob is None or record is None or record.version != version or version != record.digest[:12]:
            raise ArtifactDamagedError(
                f"{self._remote.url(name)} cannot be read, or is another's: release the student again"
            )
        return record, blob.content

    def _place_copy(self, workplace: Path, final: Path) -> None:
        final.parent.mkdir(exist_ok=True)
        shutil.rmtree(final, ignore_errors=True)
        workplace.rename(final)
        sync(final.parent)


def shelf_at(directory: Path) -> Shelf:
    """The shelf of a recipe: its directory below releases/, or what `POTSTILL_STORE` holds of the same name."""
    remote = open_remote()
    return Shelf(directory) if remote is None else BucketShelf(directory, remote)


def all_versions(home: Path) -> list[tuple[str, str]]:
    """Every recipe and version that is released."""
    remote = open_remote()
    if remote is not None:
        return _versions_in(remote, "releases")
    found = (home / "releases").glob(f"*/versions/*/{VERSION_FILE}")
    return sorted((path.parents[2].name, path.parent.name) for path in found)


def _versions_in(remote: ObjectStore, below: str) -> list[tuple[str, str]]:
    paths = (PurePosixPath(name) for name in remote.names(below))
    found = (path.parts for path in paths if path.match(f"releases/*/versions/*/{VERSION_FILE}"))
    return sorted((parts[1], parts[3]) for parts in found)


def _object_name(name: str, digest: str) -> str:
    """A version's digest covers its adapter only: other files get names that two machines cannot both give."""
    path = PurePosixPath(name)
    return name if path.parts[0] == ADAPTER else str(path.with_stem(f"{path.stem}-{digest[:12]}"))


def _is_copy(directory: Path, record: bytes) -> bool:
    """Whether a directory holds a version as the bucket records it, every byte verified."""
    try:
        verify(directory)
    except ArtifactDamagedError:
        return False
    return (directory / VERSION_FILE).read_bytes() == record
