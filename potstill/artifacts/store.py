"""The store: artefacts and keys below one directory and, where `POTSTILL_STORE` is set, in a bucket that machines share.

artifacts/<kind>/<digest12>/   files, and manifest.json written last: without it the directory does not exist
keys/<stage>/<VERSION>/<digest>.json   → the artefact that this stage made of these inputs
pins/<flow run>/<what>.json    what a run found when it began
locks/, tmp/                   two builders of one key take turns; what is unfinished lies apart

With a bucket, artefacts, keys and pins have the same names there, and what the bucket holds is what counts. The directory then
holds verified copies, and `keys/` only what was built here and is not yet uploaded.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from potstill.artifacts.copies import find_manifest, pull, push
from potstill.artifacts.directory import (
    MANIFEST,
    SCHEMA_VERSION,
    ArtifactRef,
    Manifest,
    StageKey,
    digest_files,
    is_whole,
    load_artifact,
    read_manifest,
)
from potstill.artifacts.disk import sync, write_atomically
from potstill.artifacts.keys import DiskKeys, SharedKeys
from potstill.artifacts.pins import Pins
from potstill.errors import ArtifactDamagedError, ArtifactError, ArtifactMissingError
from potstill.fingerprint import code_revision, fingerprint
from potstill.home import potstill_home
from potstill.object_store import ObjectStore, open_remote
from potstill.records import TeacherTerms

log = logging.getLogger(__name__)

_verified: set[Path] = set()
"""Copies of what a bucket holds that this process has found whole: each is looked through once."""


class ArtifactStore:
    """Artefacts and keys; see the module.

    Args:
        root: the directory, which is a cache where there is a bucket.
        remote: the bucket.

    Errors: `ArtifactMissingError`, `ArtifactDamagedError` where a reference cannot be honoured; those of `ObjectStore`.
    """

    def __init__(self, root: Path, remote: ObjectStore | None = None) -> None:
        self.root = root
        self.pins = Pins(root, remote)
        self._remote = remote
        self._unshared = DiskKeys(root)
        self._keys = self._unshared if remote is None else SharedKeys(remote)

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

        Two processes of one machine that build one key take turns, and the second finds the first one's work. Of two
        machines that build it at once, both work, and the second one takes what the first one made. The terms of the
        inputs' teachers go on into its manifest, after those that are given.
        """
        with self._lock(f"{key.stage}-{key.digest[:24]}"):
            seen = self._keys.read(key)
            if (found := self.lookup(key)) is not None:
                if self._remote is not None:
                    self._unshared.forget(key)
                return found
            ref = self._left_by_a_killed_upload(key)
            if ref is None:
                workplace = self.root / "tmp" / f"{key.stage}-{key.digest[:24]}"
                shutil.rmtree(workplace, ignore_errors=True)
                workplace.mkdir(parents=True)
                try:
                    num_rows = produce(workplace)
                    made_of = (*teacher_terms, *(terms for ref in inputs for terms in self.manifest(ref).teacher_terms))
                    ref = self._adopt(workplace, kind, num_rows, key, inputs, recipe_fingerprint, made_of)
                finally:
                    shutil.rmtree(workplace, ignore_errors=True)
            if self._remote is None:
                return self._keys.settle(key, ref, seen)
            self._unshared.settle(key, ref, None)
            push(self._remote, self.root / ref.uri, ref.uri)
            settled = self._keys.settle(key, ref, seen)
            self._unshared.forget(key)
            return settled

    def lookup(self, key: StageKey) -> ArtifactRef | None:
        """The artefact that `key` names, every byte verified; None where it is absent, incomplete or damaged."""
        record = self._keys.read(key)
        if record is None or record.ref is None:
            return None
        return record.ref if self._is_whole(record.ref) else None

    def find(self, kind: str, digest: str) -> ArtifactRef | None:
        """The artefact with this digest, every byte verified; None where the store does not hold it."""
        uri = f"artifacts/{kind}/{digest[:12]}"
        if self._remote is not None and not self._is_whole(ArtifactRef(kind=kind, uri=uri, digest=digest, num_rows=0)):
            return None
        try:
            return load_artifact(self.root / uri, kind, expected_digest=digest)
        except ArtifactError:
            return None

    def mirror_key(self, key: StageKey) -> str:
        """The key under which a scheduler's own cache may remember what `key` names.

        It changes when the artefact has to be built again, when the record of the key is lost, and with the store.
        """
        record = self._keys.ensure(key)
        is_lost = record.ref is not None and self.lookup(key) is None
        return f"{key}-{record.token}-{record.generation + is_lost}"

    def path(self, ref: ArtifactRef) -> Path:
        """The directory of an artefact; raises `ArtifactMissingError` where its manifest is gone or another's.

        With a bucket, it is brought here first where it is not, or no longer, whole here; `ArtifactDamagedError` where it is
        damaged there.
        """
        directory = self.root / ref.uri
        if self._remote is not None and not Path(ref.uri).is_absolute():
            self._bring(ref)
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
            if not is_whole(final, ref):
                final.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(final, ignore_errors=True)
                workplace.rename(final)
                sync(final.parent)
        return ref

    def _lock(self, name: str) -> FileLock:
        path = self.root / "locks" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)

    def _left_by_a_killed_upload(self, key: StageKey) -> ArtifactRef | None:
        """What was built here for a bucket, and did not get there whole."""
        left = None if self._remote is None else self._unshared.read(key)
        return (
            left.ref
            if left is not None and left.ref is not None and is_whole(self.root / left.ref.uri, left.ref)
            else None
        )

    def _is_whole(self, ref: ArtifactRef) -> bool:
        """Whether the store holds an artefact, every byte verified. With a bucket it is here afterwards."""
        if self._remote is None:
            return is_whole(self.root / ref.uri, ref)
        manifest = find_manifest(self._remote, ref.uri)
        if manifest is None or manifest.digest != ref.digest:
            return False
        _verified.discard(self.root / ref.uri)
        try:
            self._bring(ref)
        except ArtifactMissingError:
            return False
        except ArtifactDamagedError as error:
            log.warning("%s will be built again: %s", ref.kind, error)
            return False
        return True

    def _bring(self, ref: ArtifactRef) -> None:
        """Have a whole copy of what the bucket holds."""
        assert self._remote is not None
        directory = self.root / ref.uri
        if directory in _verified and (directory / MANIFEST).is_file():
            return
        with self._lock(f"{ref.kind}-{ref.digest[:24]}"):
            if not is_whole(directory, ref):
                pull(self._remote, ref, self.root / "tmp" / f"{ref.kind}-{ref.digest[:24]}", directory)
        _verified.add(directory)


def open_store() -> ArtifactStore:
    """The store of `POTSTILL_HOME`."""
    return store_at(potstill_home())


def store_at(root: Path) -> ArtifactStore:
    """The store of a state directory, with the bucket that `POTSTILL_STORE` names."""
    return ArtifactStore(root, open_remote())
