"""Which files a recipe's inputs name: files, globs, folders, and folders that `datasets` has saved."""

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

from potstill.errors import DataError
from potstill.roots import check_path, check_pattern, open_inside

FIELD = "curation.inputs"
DATASET_STATE = "state.json"
"""What `Dataset.save_to_disk` leaves beside its Arrow files, and lists them in."""


def find_inputs(patterns: tuple[str, ...]) -> list[Path]:
    """Every file that the patterns name, sorted. A folder stands for all files in it that are not hidden.

    Errors: `DataError` for a pattern that names none, or only empty files; `NotAuthorisedError` for what no root holds.
    """
    if not patterns:
        raise DataError(
            "nothing has landed in the recipe's inbox, and its curation.inputs name nothing else: send prompts"
        )
    found: set[Path] = set()
    for pattern in patterns:
        check_pattern(pattern, FIELD)
        expanded = os.path.expanduser(pattern)  # noqa: PTH111 - pathlib raises for a home that nobody has
        matches = [Path(name) for name in glob.glob(expanded, recursive=True)]  # noqa: PTH207 - absolute patterns
        files = [file for path in matches for file in _files_at(path, is_named=len(matches) == 1)]
        if not files:
            raise DataError(f"input {pattern}: {_missing(matches)} (looked from {Path.cwd()})")
        for path in files:
            check_path(path, FIELD)
        found.update(files)
    if not any(path.stat().st_size for path in found):
        raise nothing_in(found)
    return sorted(found)


def sha256(path: Path) -> str:
    """Of the bytes of an input."""
    with open_inside(path, FIELD) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def count_bytes(paths: Iterable[Path]) -> int:
    """How large the files are together."""
    return sum(path.stat().st_size for path in paths)


def nothing_in(paths: Iterable[Path]) -> DataError:
    """The error for files without a line."""
    names = ", ".join(map(str, sorted(paths)))
    return DataError(f"{names}: no line in it: give a request log or chat JSONL with at least one prompt")


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


def _missing(matches: list[Path]) -> str:
    return "a folder without files" if matches and matches[0].is_dir() else "no such file"
