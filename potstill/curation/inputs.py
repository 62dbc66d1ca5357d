"""Which files a recipe's inputs name: files, globs, folders, folders that `datasets` has saved, objects of a bucket."""

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import orjson

from potstill.curation import objects
from potstill.errors import DataError
from potstill.roots import check_path, check_pattern, check_url, open_inside

FIELD = "curation.inputs"
DATASET_STATE = "state.json"
"""What `Dataset.save_to_disk` leaves beside its Arrow files, and lists them in."""


class Input(NamedTuple):
    """One file, or one object."""

    name: str
    """Its path or address, as a prompt's source tells it."""
    num_bytes: int
    etag: str | None = None
    """Of an object; None for a file."""

    @property
    def digest(self) -> str:
        """Of its content: the sha256 of a file, an object's ETag, which the store changes with the content."""
        if self.etag is not None:
            return f"etag {self.etag}"
        with open_inside(Path(self.name), FIELD) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def open(self) -> AbstractContextManager[BinaryIO]:
        """To read; below a root, where a run is confined."""
        if self.etag is not None:
            check_url(self.name, FIELD)
            return objects.open_object(self.name)
        return open_inside(Path(self.name), FIELD)


def find_inputs(patterns: tuple[str, ...]) -> list[Input]:
    """Every file that the patterns name, sorted. A folder stands for all files in it that are not hidden.

    Errors: `DataError` for a pattern that names none, or only empty files; `NotAuthorisedError` for what no root holds.
    """
    if not patterns:
        raise DataError(
            "nothing has landed in the recipe's inbox, and its curation.inputs name nothing else: send prompts"
        )
    found: set[Input] = set()
    for pattern in patterns:
        found.update(_objects(pattern) if objects.is_address(pattern) else _files(pattern))
    if not any(file.num_bytes for file in found):
        raise nothing_in(found)
    return sorted(found)


def nothing_in(inputs: Iterable[Input]) -> DataError:
    """The error for files without a line."""
    names = ", ".join(file.name for file in sorted(inputs))
    return DataError(f"{names}: no line in it: give a request log or chat JSONL with at least one prompt")


def _objects(pattern: str) -> Iterator[Input]:
    check_url(pattern, FIELD)
    listed = objects.find_objects(pattern)
    if not listed:
        raise DataError(f"input {pattern}: no such object")
    for found in listed:
        yield Input(found.address, found.num_bytes, found.etag)


def _files(pattern: str) -> Iterator[Input]:
    check_pattern(pattern, FIELD)
    expanded = os.path.expanduser(pattern)  # noqa: PTH111 - pathlib raises for a home that nobody has
    matches = [Path(name) for name in glob.glob(expanded, recursive=True)]  # noqa: PTH207 - absolute patterns
    files = [file for path in matches for file in _files_at(path, is_named=len(matches) == 1)]
    if not files:
        missing = "a folder without files" if matches and matches[0].is_dir() else "no such file"
        raise DataError(f"input {pattern}: {missing} (looked from {Path.cwd()})")
    for path in files:
        check_path(path, FIELD)
        yield Input(str(path), path.stat().st_size)


def _files_at(path: Path, *, is_named: bool) -> Iterator[Path]:
    """A file, or those of a folder that is named by itself: a glob means the files that it matches."""
    if path.is_file():
        yield path
    elif is_named and path.is_dir():
        yield from _files_in(path)


def _files_in(folder: Path) -> Iterator[Path]:
    check_path(folder, FIELD)
    state = folder / DATASET_STATE
    if state.is_file():
        yield from _files_of_dataset(state)
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files_in(path)
        elif path.is_file() and path.name != "dataset_dict.json":
            yield path


def _files_of_dataset(state: Path) -> Iterator[Path]:
    try:
        with open_inside(state, FIELD) as file:
            listed = orjson.loads(file.read())["_data_files"]
        names = [Path(entry["filename"]).name for entry in listed]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{state}: lists no files of a saved data set: {error}") from None
    for name in names:
        if not (state.parent / name).is_file():
            raise DataError(f"{state}: names {name}, which is not there: copy the whole folder")
        yield state.parent / name
