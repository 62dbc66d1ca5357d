"""keys/<stage>/<VERSION>/<digest>.json: which artefact a stage made of which inputs.

On a disk, records are replaced under a lock. In a bucket they are replaced by conditional PUT, and who comes second to a key
takes what the first one made.
"""

import uuid
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ValidationError

from potstill.artifacts.directory import ArtifactRef, StageKey
from potstill.artifacts.disk import write_atomically
from potstill.object_store import ObjectStore


class KeyRecord(BaseModel):
    ref: ArtifactRef | None
    """None until it is built for the first time."""
    token: str
    """Drawn at random with the record: the one that follows a lost record is told from it."""
    generation: int = 0
    """How often this key had to be built again because its artefact was missing or damaged."""

    def rebuilt(self, ref: ArtifactRef) -> "KeyRecord":
        return self.model_copy(update={"ref": ref, "generation": self.generation + (self.ref is not None)})


class DiskKeys:
    """The records below a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, key: StageKey) -> KeyRecord | None:
        try:
            return KeyRecord.model_validate_json(self._path(key).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def ensure(self, key: StageKey) -> KeyRecord:
        """The record of a key, written where there was none."""
        with self._lock():
            record = self.read(key)
            if record is None:
                record = _new_record()
                self._write(key, record)
        return record

    def settle(self, key: StageKey, ref: ArtifactRef, seen: KeyRecord | None) -> ArtifactRef:  # noqa: ARG002 - the lock of the build keeps others out
        """Record what was built; returns what the key names from now on."""
        with self._lock():
            self._write(key, (self.read(key) or _new_record()).rebuilt(ref))
        return ref

    def forget(self, key: StageKey) -> None:
        self._path(key).unlink(missing_ok=True)

    def _write(self, key: StageKey, record: KeyRecord) -> None:
        write_atomically(self._path(key), record.model_dump_json())

    def _path(self, key: StageKey) -> Path:
        return self._root / "keys" / f"{key}.json"

    def _lock(self) -> FileLock:
        """Held while a record is read and replaced: an instant, where a build may take hours."""
        path = self._root / "locks" / "records.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)


class SharedKeys:
    """The records in a bucket, for every machine that uses it."""

    def __init__(self, remote: ObjectStore) -> None:
        self._remote = remote

    def read(self, key: StageKey) -> KeyRecord | None:
        return self._find(key)[0]

    def ensure(self, key: StageKey) -> KeyRecord:
        while True:
            record, etag = self._find(key)
            if record is not None:
                return record
            record = _new_record()
            if self._replace(key, record, etag):
                return record

    def settle(self, key: StageKey, ref: ArtifactRef, seen: KeyRecord | None) -> ArtifactRef:
        """Record what was built, unless another machine has built it since the record was `seen`: then take that one's."""
        while True:
            record, etag = self._find(key)
            before = (seen.ref, seen.generation) if seen else (None, 0)
            if record is not None and record.ref is not None and (record.ref, record.generation) != before:
                return record.ref
            if self._replace(key, (record or _new_record()).rebuilt(ref), etag):
                return ref

    def _find(self, key: StageKey) -> tuple[KeyRecord | None, str | None]:
        """The record and the etag of what holds it; what cannot be read is replaced by the next one."""
        blob = self._remote.read(f"keys/{key}.json")
        if blob is None:
            return None, None
        try:
            return KeyRecord.model_validate_json(blob.content), blob.etag
        except ValidationError:
            return None, blob.etag

    def _replace(self, key: StageKey, record: KeyRecord, etag: str | None) -> bool:
        return self._remote.replace(f"keys/{key}.json", record.model_dump_json().encode(), etag)


def _new_record() -> KeyRecord:
    return KeyRecord(ref=None, token=uuid.uuid4().hex[:12])
