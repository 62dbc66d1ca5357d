"""The store of what stages made: content-addressed directories, and the keys that say which stage made which.

artifacts/<kind>/<digest12>/   files, and manifest.json written last: without it the directory does not exist
keys/<stage>/<VERSION>/<digest>.json   → the artefact that this stage made of these inputs
locks/, tmp/                   two builders of one key take turns; what is unfinished lies apart
"""

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from potstill.errors import ArtifactDamagedError, ArtifactError, ArtifactMissingError
from potstill.fingerprint import code_revision, file_sha256, fingerprint
from potstill.home import potstill_home
from potstill.records import TeacherTerms

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


class ArtifactRef(BaseModel):
    """What crosses a task boundary in place of rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    uri: str
    """The directory: relative to the store's root, or absolute where it lies outside a store."""
    digest: str
    """sha256 over the kind and every file's name and sha256."""
    num_rows: int


class StageKey(NamedTuple):
    """A stage's cache key: its name, its VERSION, and the fingerprint of its inputs and config."""

    stage: str
    version: int
    digest: str

    def __str__(self) -> str:
        return f"{self.stage}/{self.version}/{self.digest}"


class Manifest(BaseModel):
    """The last file written into an artefact, and its proof of being whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    schema_version: int
    digest: str
    num_rows: int
    files: dict[str, str]
    """sha256 of each file, by its path in the directory."""
    inputs: tuple[str, ...]
    """Digests of the artefacts it was made from."""
    key: str
    recipe_fingerprint: str
    code_revision: str
    created_at: datetime
    teacher_terms: tuple[TeacherTerms, ...] = ()
    """Of every teacher whose answers went into it, directly or through its inputs, as they were when it was made."""


class _KeyRecord(BaseModel):
    ref: ArtifactRef | None
    """None until it is built for the first time."""
    token: str
    """Drawn at random with the record: the one that follows a lost record is told from it."""
    generation: int = 0
    """How often this key had to be built again because its artefact was missing or damaged."""


class ArtifactStore:
    """Artefacts and keys below one directory.

    Errors: `ArtifactMissingError`, `ArtifactDamagedError` where a reference cannot be honoured.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def build(
        self,
        key: StageKey,
        kind: str,
        produce: Callable[[Path], int],
        *,
        inputs: Sequence[ArtifactRef] = (),
        recipe_fingerprint: str = "",
        teacher_terms: Sequence[TeacherTerms] = (),
    ) -> ArtifactRef:
        """Return what `key` names, calling `produce(directory) → num_rows` only where the store does not hold it whole.

        Two processes that build one key take turns, and the second finds the first one's work. The terms of the inputs'
        teachers go on into its manifest, after those that are given.
        """
        with self._lock(f"{key.stage}-{key.digest[:24]}"):
            if (found := self.lookup(key)) is not None:
                return found
            workplace = self.root / "tmp" / f"{key.stage}-{key.digest[:24]}"
            shutil.rmtree(workplace, ignore_errors=True)
            workplace.mkdir(parents=True)
            try:
                num_rows = produce(workplace)
                made_of = (*teacher_terms, *(terms for ref in inputs for terms in self.manifest(ref).teacher_terms))
                ref = self._adopt(workplace, kind, num_rows, key, inputs, recipe_fingerprint, made_of)
            finally:
                shutil.rmtree(workplace, ignore_errors=True)
            with self._records_lock():
                record = self._record(key) or _new_record()
                again = record.generation + (record.ref is not None)
                built = record.model_copy(update={"ref": ref, "generation": again})
                write_atomically(self._key_path(key), built.model_dump_json())
            return ref

    def lookup(self, key: StageKey) -> ArtifactRef | None:
        """The artefact that `key` names, every byte verified; None where it is absent, incomplete or damaged."""
        record = self._record(key)
        if record is None or record.ref is None:
            return None
        return record.ref if _is_whole(self.root / record.ref.uri, record.ref) else None

    def find(self, kind: str, digest: str) -> ArtifactRef | None:
        """The artefact with this digest, every byte verified; None where the store does not hold it."""
        directory = self.root / "artifacts" / kind / digest[:12]
        try:
            return load_artifact(directory, kind, expected_digest=digest)
        except ArtifactError:
            return None

    def mirror_key(self, key: StageKey) -> str:
        """The key under which a scheduler's own cache may remember what `key` names.

        It changes when the artefact has to be built again, when the record of the key is lost, and with the store.
        """
        with self._records_lock():
            record = self._record(key)
            if record is None:
                record = _new_record()
                write_atomically(self._key_path(key), record.model_dump_json())
        is_lost = record.ref is not None and self.lookup(key) is None
        return f"{key}-{record.token}-{record.generation + is_lost}"

    def path(self, ref: ArtifactRef) -> Path:
        """The directory of an artefact; raises `ArtifactMissingError` where its manifest is gone or another's."""
        directory = self.root / ref.uri
        if read_manifest(directory).digest != ref.digest:
            raise ArtifactMissingError(
                f"{directory} no longer holds {ref.kind} {ref.digest[:12]}: run the recipe again"
            )
        return directory

    def manifest(self, ref: ArtifactRef) -> Manifest:
        return read_manifest(self.path(ref))

    def export(self, ref: ArtifactRef, destination: Path) -> None:
        """Copy an artefact into a directory of the user's, its manifest last."""
        source = self.path(ref)
        destination.mkdir(parents=True, exist_ok=True)
        (destination / MANIFEST).unlink(missing_ok=True)
        shutil.copytree(source, destination, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        shutil.copy2(source / MANIFEST, destination / MANIFEST)

    def _adopt(
        self,
        workplace: Path,
        kind: str,
        num_rows: int,
        key: StageKey,
        inputs: Sequence[ArtifactRef],
        recipe: str,
        teacher_terms: Sequence[TeacherTerms],
    ) -> ArtifactRef:
        files = digest_files(workplace)
        digest = fingerprint({"kind": kind, "files": files})
        manifest = Manifest(
            kind=kind,
            schema_version=SCHEMA_VERSION,
            digest=digest,
            num_rows=num_rows,
            files=files,
            inputs=tuple(ref.digest for ref in inputs),
            key=str(key),
            recipe_fingerprint=recipe,
            code_revision=code_revision(),
            created_at=datetime.now(UTC),
            teacher_terms=tuple(dict.fromkeys(teacher_terms)),
        )
        final = self.root / "artifacts" / kind / digest[:12]
        ref = ArtifactRef(kind=kind, uri=str(final.relative_to(self.root)), digest=digest, num_rows=num_rows)
        for name in files:
            sync(workplace / name)
        write_atomically(workplace / MANIFEST, manifest.model_dump_json(indent=2))
        with self._lock(f"{kind}-{digest[:24]}"):  # another key may make the same bytes just now
            if not _is_whole(final, ref):
                final.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(final, ignore_errors=True)
                workplace.rename(final)
                sync(final.parent)
        return ref

    def _lock(self, name: str) -> FileLock:
        path = self.root / "locks" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)

    def _records_lock(self) -> FileLock:
        """Held while a key's record is read and replaced: an instant, where a build may take hours."""
        return self._lock("records")

    def _key_path(self, key: StageKey) -> Path:
        return self.root / "keys" / f"{key}.json"

    def _record(self, key: StageKey) -> _KeyRecord | None:
        try:
            return _KeyRecord.model_validate_json(self._key_path(key).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None


def open_store() -> ArtifactStore:
    """The store of `POTSTILL_HOME`."""
    return ArtifactStore(potstill_home())


def load_artifact(directory: Path, kind: str, *, expected_digest: str | None = None) -> ArtifactRef:
    """Verify an artefact directory, inside a store or not, and return its reference.

    Errors: `ArtifactMissingError` (no manifest, or another artefact), `ArtifactDamagedError` (files differ from it).
    """
    manifest = read_manifest(directory)
    if manifest.kind != kind:
        raise ArtifactMissingError(f"{directory} is a {manifest.kind} artefact, not a {kind}: name another directory")
    if expected_digest is not None and manifest.digest != expected_digest:
        raise ArtifactMissingError(f"{directory} holds {manifest.digest[:12]}, not {expected_digest[:12]}")
    if manifest.digest != fingerprint({"kind": kind, "files": manifest.files}):
        raise ArtifactDamagedError(f"{directory}: manifest.json contradicts itself: build it again")
    found = digest_files(directory)
    wrong = sorted(name for name, digest in manifest.files.items() if found.get(name) != digest)
    if wrong:
        raise ArtifactDamagedError(f"{directory}: {', '.join(wrong)} differ from manifest.json: build it again")
    return ArtifactRef(kind=kind, uri=str(directory.absolute()), digest=manifest.digest, num_rows=manifest.num_rows)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file whole: after a crash it holds the old text or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def _new_record() -> _KeyRecord:
    return _KeyRecord(ref=None, token=uuid.uuid4().hex[:12])


def _is_whole(directory: Path, ref: ArtifactRef) -> bool:
    try:
        load_artifact(directory, ref.kind, expected_digest=ref.digest)
    except ArtifactMissingError:
        return False
    except ArtifactDamagedError as error:
        log.warning("%s will be built again: %s", ref.kind, error)
        return False
    return True


def read_manifest(directory: Path) -> Manifest:
    try:
        return Manifest.model_validate_json((directory / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactMissingError(f"{directory} has no manifest.json: it is no finished artefact") from None
    except IsADirectoryError:
        raise ArtifactDamagedError(f"{directory / MANIFEST} is a directory: build it again") from None
    except ValidationError as error:
        raise ArtifactDamagedError(f"{directory / MANIFEST} cannot be read ({error.error_count()} errors)") from None


def digest_files(directory: Path) -> dict[str, str]:
    """The sha256 of every file, by its path below the directory."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): file_sha256(path) for path in files}


def sync(path: Path) -> None:
    """Have a file, or the names in a directory, on the disk before what follows."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
