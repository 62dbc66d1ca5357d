"""One artefact: a directory of files, and manifest.json written last. Without its manifest it does not exist."""

import logging
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from potstill.errors import ArtifactDamagedError, ArtifactMissingError
from potstill.fingerprint import file_sha256, fingerprint
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

    @property
    def contradicts_itself(self) -> bool:
        return self.digest != fingerprint({"kind": self.kind, "files": self.files})


def load_artifact(directory: Path, kind: str, *, expected_digest: str | None = None) -> ArtifactRef:
    """Verify an artefact directory, inside a store or not, and return its reference.

    Errors: `ArtifactMissingError` (no manifest, or another artefact), `ArtifactDamagedError` (files differ from it).
    """
    manifest = read_manifest(directory)
    if manifest.kind != kind:
        raise ArtifactMissingError(f"{directory} is a {manifest.kind} artefact, not a {kind}: name another directory")
    if expected_digest is not None and manifest.digest != expected_digest:
        raise ArtifactMissingError(f"{directory} holds {manifest.digest[:12]}, not {expected_digest[:12]}")
    if manifest.contradicts_itself:
        raise ArtifactDamagedError(f"{directory}: manifest.json contradicts itself: build it again")
    found = digest_files(directory)
    wrong = sorted(name for name, digest in manifest.files.items() if found.get(name) != digest)
    if wrong:
        raise ArtifactDamagedError(f"{directory}: {', '.join(wrong)} differ from manifest.json: build it again")
    return ArtifactRef(kind=kind, uri=str(directory.absolute()), digest=manifest.digest, num_rows=manifest.num_rows)


def is_whole(directory: Path, ref: ArtifactRef) -> bool:
    """Whether a directory holds this artefact, every byte verified; damage is logged."""
    try:
        load_artifact(directory, ref.kind, expected_digest=ref.digest)
    except ArtifactMissingError:
        return False
    except ArtifactDamagedError as error:
        log.warning("%s is not used: %s", ref.kind, error)
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
