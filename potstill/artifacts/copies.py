"""Artefacts on their way between a home and a bucket. In the bucket, the manifest is the commit: it is uploaded last."""

import shutil
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from potstill.artifacts.directory import MANIFEST, ArtifactRef, Manifest, digest_files, read_manifest
from potstill.artifacts.disk import sync, write_atomically
from potstill.errors import ArtifactDamagedError, ArtifactMissingError
from potstill.object_store import ObjectStore


def push(remote: ObjectStore, directory: Path, uri: str) -> None:
    """Upload an artefact. Whoever is killed before the manifest is there has uploaded nothing, and does it again."""
    for name in read_manifest(directory).files:
        remote.upload(directory / name, f"{uri}/{name}")
    remote.write(f"{uri}/{MANIFEST}", (directory / MANIFEST).read_bytes())


def find_manifest(remote: ObjectStore, uri: str) -> Manifest | None:
    """What an artefact of the bucket says of itself; None where no machine has finished it, or it cannot be read."""
    blob = remote.read(f"{uri}/{MANIFEST}")
    if blob is None:
        return None
    try:
        return Manifest.model_validate_json(blob.content)
    except ValidationError:
        return None


def pull(remote: ObjectStore, ref: ArtifactRef, workplace: Path, final: Path) -> None:
    """Download an artefact, verify every byte of it, and put it in its place in one step.

    Errors: `ArtifactMissingError` where the bucket holds no such artefact, `ArtifactDamagedError` where it is not what it says.
    """
    place = remote.url(ref.uri)
    manifest = find_manifest(remote, ref.uri)
    if manifest is None or manifest.digest != ref.digest:
        raise ArtifactMissingError(f"{place} does not hold {ref.kind} {ref.digest[:12]}: run the recipe again")
    if manifest.contradicts_itself or manifest.kind != ref.kind:
        raise ArtifactDamagedError(f"{place}/{MANIFEST} contradicts itself: run the recipe again to build it again")
    download(remote, ref.uri, {name: name for name in manifest.files}, workplace)
    found = digest_files(workplace)
    if wrong := sorted(name for name, digest in manifest.files.items() if found.get(name) != digest):
        shutil.rmtree(workplace)
        raise ArtifactDamagedError(
            f"{place}: {', '.join(wrong)} differ from {MANIFEST}: run the recipe again to build it again"
        )
    for name in manifest.files:
        sync(workplace / name)
    write_atomically(workplace / MANIFEST, manifest.model_dump_json(indent=2))
    final.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(final, ignore_errors=True)
    workplace.rename(final)
    sync(final.parent)


def download(remote: ObjectStore, uri: str, files: dict[str, str], workplace: Path) -> None:
    """Fill a new directory: under each name, the object of the other name below `uri`. One that is missing stays away.

    Errors: `ArtifactDamagedError` where a name would lead out of the directory.
    """
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not name:
            raise ArtifactDamagedError(f"{remote.url(uri)} names a file {name!r}, which lies outside of it: remove it")
    shutil.rmtree(workplace, ignore_errors=True)
    workplace.mkdir(parents=True)
    for name, source in files.items():
        remote.download(f"{uri}/{source}", workplace / name)
