"""Content digests: the same meaning gives the same digest, on every machine."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel


def fingerprint(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical JSON of `value`; models, paths, Decimals and sets of text are allowed."""
    return hashlib.sha256(orjson.dumps(value, default=_plain, option=orjson.OPT_SORT_KEYS)).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def code_revision() -> str:
    """The git commit of the code that runs, with "+dirty" where tracked files differ from it; "" outside a checkout."""
    root = Path(__file__).parent
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", root, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)
