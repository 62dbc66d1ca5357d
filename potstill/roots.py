"""Which files a recipe may read, where the recipe came through a form, an API or a webhook.

Runs are either trusted or confined. A user at a shell runs recipes of their own: trusted, and every file that the
system lets them read is theirs. A run is confined where `POTSTILL_DATA_ROOTS` is set, and where a worker started it: there
the paths of a recipe, symlinks resolved, and its addresses in buckets have to lie below one of these roots, or in the inbox. A worker for which nobody
has set the variable reads the inbox only.
"""

import os
import re
from io import BufferedReader
from pathlib import Path

from potstill.errors import NotAuthorisedError, UsageError
from potstill.home import potstill_home

ROOTS_VARIABLE = "POTSTILL_DATA_ROOTS"
"""Absolute directories and s3://BUCKET/PREFIX, separated by colons as in PATH, semicolons or line ends. A blank may be in a path."""
WORKER_VARIABLE = "PREFECT__FLOW_RUN_ID"
"""What Prefect's workers and runners set for the process of every run that they start, and nobody else does."""
INBOX = "inbox"
_BETWEEN = re.compile(r"[;\n]|:(?=\s*(?:/(?!/)|~|[A-Za-z][A-Za-z0-9+.-]*://))")
"""A colon only where another root follows, or a URL."""
_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]+[a-z0-9](?:/[^*?\[\]]*)?")
_MAGIC = re.compile(r"[*?[]")


def is_confined() -> bool:
    """Whether what a recipe names may be read below the roots only."""
    return ROOTS_VARIABLE in os.environ or WORKER_VARIABLE in os.environ


def read_roots() -> tuple[Path, ...]:
    """The roots, resolved. The inbox always is one.

    Errors: `UsageError` for one that is no absolute path.
    """
    return (_resolve(potstill_home() / INBOX), *(_read_root(name) for name in _named() if not _BUCKET.fullmatch(name)))


def check_url(pattern: str, field: str) -> None:
    """The same as `check_pattern` for an address in a bucket: what stands before its first wildcard lies below a root.

    Errors: `NotAuthorisedError`.
    """
    if not is_confined():
        return
    fixed = _MAGIC.split(pattern)[0]
    is_below = any(pattern == root or fixed.startswith(f"{root}/") for root in read_url_roots())
    if not is_below or ".." in pattern.split("/"):
        raise _refused(pattern, field)


def read_url_roots() -> tuple[str, ...]:
    """The roots in buckets, without a slash at the end."""
    return tuple(name.rstrip("/") for name in _named() if _BUCKET.fullmatch(name))


def check_path(path: Path, field: str, value: str | None = None) -> None:
    """Errors: `NotAuthorisedError` where a run is confined and the path, symlinks resolved, lies below no root.

    Whether there is such a file is not told.
    """
    if is_confined() and not _is_below(path):
        raise _refused(str(path) if value is None else value, field)


def check_pattern(pattern: str, field: str) -> None:
    """The same for a glob, before anything is looked up: its first parts, up to the first wildcard, lie below a root.

    Behind a wildcard, no part may lead up again. Errors: `NotAuthorisedError`.
    """
    if not is_confined():
        return
    fixed, rest = _split(pattern)
    if ".." in rest or not _is_below(fixed):
        raise _refused(pattern, field)


def check_tree(directory: Path, field: str, value: str) -> None:
    """The same for a directory and every file in it, wherever its symlinks lead. Errors: `NotAuthorisedError`."""
    if is_confined():
        check_path(directory, field, value)
        for path in directory.rglob("*"):
            check_path(path, field, value)


def open_inside(path: Path, field: str) -> BufferedReader:
    """Open a file to read; where a run is confined, what has been opened is what lies below a root.

    A symlink that is exchanged after it was looked up, or between the two looks here, changes nothing: the open file is
    compared with the one that the resolved path names. Errors: `NotAuthorisedError`, `OSError`.
    """
    check_path(path, field)
    file = path.open("rb")
    if not is_confined():
        return file
    try:
        resolved = _resolve(path)
        if _lies_below(resolved) and os.path.samestat(os.fstat(file.fileno()), resolved.lstat()):
            return file
    except OSError:
        pass
    file.close()
    raise _refused(str(path), field)


def _named() -> list[str]:
    return [part.strip() for part in _BETWEEN.split(os.environ.get(ROOTS_VARIABLE, "")) if part.strip()]


def _refused(value: str, field: str) -> NotAuthorisedError:
    if ROOTS_VARIABLE in os.environ:
        remedy = f"it lies below no root of {ROOTS_VARIABLE}: add its directory there"
    else:
        remedy = (
            f"a run that a worker starts reads nothing but the inbox: set {ROOTS_VARIABLE} for the worker to the "
            "directories that its recipes may read"
        )
    return NotAuthorisedError(f"{field} {value}: {remedy}")


def _read_root(named: str) -> Path:
    path = Path(named).expanduser()
    if not path.is_absolute():
        raise UsageError(f"{ROOTS_VARIABLE}: {named}: name an absolute directory or s3://BUCKET/PREFIX")
    return _resolve(path)


def _is_below(path: Path) -> bool:
    try:
        resolved = _resolve(path)
    except (OSError, ValueError):  # a null byte
        return False
    return _lies_below(resolved)


def _lies_below(resolved: Path) -> bool:
    return any(resolved == root or root in resolved.parents for root in read_roots())


def _resolve(path: Path) -> Path:
    return Path(os.path.realpath(os.path.expanduser(path)))  # noqa: PTH111 - pathlib raises for a home that nobody has


def _split(pattern: str) -> tuple[Path, tuple[str, ...]]:
    """The parts of a glob before its first wildcard, and those from it on."""
    parts = Path(os.path.expanduser(pattern)).parts  # noqa: PTH111 - as below
    first = next((index for index, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    return Path(*parts[:first]), parts[first:]
