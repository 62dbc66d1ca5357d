"""A released version: one directory, and version.json written last. Nothing in it changes afterwards."""

import shutil
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import orjson
from pydantic import ValidationError

from potstill.artifacts import digest_files, sync, write_atomically
from potstill.errors import ArtifactDamagedError, ReleaseError
from potstill.fingerprint import fingerprint
from potstill.records import Row, TeacherTerms, write_jsonl

ADAPTER = "adapter"
VERSION_FILE = "version.json"
CODE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py"})
"""Files that run code when they are loaded."""


class Version(Row):
    """A released student. What answers is fixed by it: the adapter, the base under it, and how long an answer may be."""

    recipe: str
    version: str
    """The first 12 hex digits of `digest`."""
    digest: str
    """sha256 over the adapter's file names and sha256s, the base's identity and `max_tokens`."""
    base_location: str
    """What `potstill.student.base.resolve_base` finds the base by."""
    base_revision: str | None
    base_identity: str
    adapter_digest: str
    """Digest of the StudentAdapter artefact."""
    decision_digest: str
    """Fingerprint of the gate decision that let this version in first."""
    max_tokens: int
    """Longest answer where a request names no limit: the one it was evaluated with."""
    created_at: datetime
    files: dict[str, str]
    """sha256 of every other file, by its path in the version's directory."""
    teacher_terms: tuple[TeacherTerms, ...] = ()
    """Of the teachers that it learned from, as its artefact's manifest holds them."""

    @property
    def name(self) -> str:
        """What clients call it: `<recipe>@<sha12>`."""
        return f"{self.recipe}@{self.version}"


def adapter_files(version: Version) -> dict[str, str]:
    """The sha256 of each file of its adapter, by its path below the adapter's directory."""
    return {
        name.removeprefix(f"{ADAPTER}/"): digest
        for name, digest in version.files.items()
        if name.startswith(f"{ADAPTER}/")
    }


def verify(directory: Path) -> Version:
    """Check every file of a version against its sha256, that nothing was added, and its name against what it holds.

    Errors: `ArtifactDamagedError` naming the files that are missing, changed or strange.
    """
    version = read_version(directory)
    adapter = {name: digest for name, digest in version.files.items() if name.startswith(f"{ADAPTER}/")}
    if version.digest != version_digest(adapter, version.base_identity, version.max_tokens):
        raise ArtifactDamagedError(f"{directory / VERSION_FILE} was changed: move the directory away and release again")
    found = digest_files(directory)
    found.pop(VERSION_FILE)
    wrong = sorted(name for name in found.keys() | version.files.keys() if found.get(name) != version.files.get(name))
    if wrong:
        raise ArtifactDamagedError(
            f"{directory}: {', '.join(wrong)} differ from {VERSION_FILE}: move the directory away and release again"
        )
    return version


def version_digest(adapter_files: dict[str, str], base_identity: str, max_tokens: int) -> str:
    return fingerprint({"files": adapter_files, "base": base_identity, "max_tokens": max_tokens})


def releasable_files(directory: Path) -> dict[str, str]:
    """Digests by path below the version's directory, of an adapter that cannot run code."""
    if not (directory / "adapter_model.safetensors").is_file():
        raise ReleaseError(f"{directory}: no adapter_model.safetensors in it: only safetensors are released")
    for path in sorted(directory.rglob("*")):
        if path.suffix in CODE_SUFFIXES or path.is_symlink():
            raise ReleaseError(f"{path}: only safetensors, JSON and text are released: remove it from the adapter")
        if path.name.endswith("config.json") and _has_auto_map(path):
            raise ReleaseError(f"{path}: auto_map runs code out of the model's directory: remove it")
    return {f"{ADAPTER}/{name}": digest for name, digest in digest_files(directory).items()}


def _has_auto_map(path: Path) -> bool:
    try:
        content = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        raise ReleaseError(f"{path} is no JSON: train the student again") from None
    return isinstance(content, dict) and bool(content.get("auto_map"))


def write_version(workplace: Path, version: Version, adapter: Path, decision: str, golden: Sequence[Row]) -> Version:
    """Fill a new directory with all that a version is, its record last; returns the record."""
    shutil.rmtree(workplace, ignore_errors=True)
    workplace.mkdir(parents=True)
    shutil.copytree(adapter, workplace / ADAPTER, copy_function=shutil.copyfile)
    write_jsonl(workplace / "golden.jsonl", golden)
    (workplace / "decision.json").write_text(decision, encoding="utf-8")
    files = digest_files(workplace)
    if not version.files.items() <= files.items():
        raise ArtifactDamagedError(f"{adapter} changed while it was copied: release again")
    for name in files:
        (workplace / name).chmod(0o444)
        sync(workplace / name)
    for path in (workplace, *(path for path in workplace.rglob("*") if path.is_dir())):
        sync(path)
    whole = version.model_copy(update={"files": files})
    write_atomically(workplace / VERSION_FILE, whole.model_dump_json(indent=2))
    (workplace / VERSION_FILE).chmod(0o444)
    return whole


@lru_cache(maxsize=256)
def parse_version(raw: bytes) -> Version:
    return Version.model_validate_json(raw)


def read_version(directory: Path) -> Version:
    try:
        version = parse_version((directory / VERSION_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        raise ArtifactDamagedError(f"{directory / VERSION_FILE} cannot be read: release the student again") from None
    if version.version != directory.name or version.version != version.digest[:12]:
        raise ArtifactDamagedError(f"{directory} holds {version.name}: move it back to where it was written")
    return version
