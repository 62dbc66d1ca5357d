"""Where state lives: home, store, ledger, data roots, inbox, the webhook's secrets."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.doctor.finding import Finding, fail, ok, warn
from potstill.errors import PotstillError, UsageError
from potstill.roots import INBOX, ROOTS_VARIABLE, read_roots, read_url_roots
from potstill.webhook.signatures import VARIABLE as SECRETS_VARIABLE
from potstill.webhook.signatures import Signatures

STORE_VARIABLE = "POTSTILL_STORE"
PROBE_BYTES = 64 * 1024


def check_home(home: Path) -> Finding:
    """Only its owner may look into it: prompts and answers lie there."""
    mode = home.stat().st_mode & 0o777
    if mode & 0o077:
        return warn("home", f"{home} is open to other users (mode {mode:o})", f"chmod 700 {home}")
    return ok("home", str(home))


def check_store(home: Path) -> Finding:
    """A small file is written, read and deleted where artefacts go; a bucket also has to refuse what a condition forbids."""
    from potstill.object_store import open_remote

    where = os.environ.get(STORE_VARIABLE) or str(home)
    content = os.urandom(PROBE_BYTES)
    remedy = f"make it writable, make room, or set {STORE_VARIABLE} or POTSTILL_HOME to another place"
    try:
        if (remote := open_remote()) is None:
            _probe_directory(home, content)
            return ok("store", f"{where}: written, read and deleted")
        remote.require_conditions()
        _probe_remote(remote.address, content)
    except PotstillError as error:
        return fail("store", str(error), "")
    except Exception as error:  # noqa: BLE001 - s3fs lets through what its client raises
        return fail("store", f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:200]}", remedy)
    return ok("store", f"{where}: written, read and deleted, and conditions on PUT are honoured")


def check_ledger() -> Finding:
    """The ledger's database opens, has this version's tables, and takes a write."""
    from sqlalchemy import select, update

    from potstill.ledger.database import Database
    from potstill.ledger.schema import SCHEMA_VERSION, meta

    database = Database()
    try:
        with database.writing() as connection:
            mine = meta.c.name == "schema_version"
            version = connection.scalar(select(meta.c.value).where(mine))
            connection.execute(update(meta).where(mine).values(value=version))
    finally:
        database.close()
    if version != str(SCHEMA_VERSION):
        return fail("ledger", f"{database.url}: schema version {version}", f"this Potstill needs {SCHEMA_VERSION}")
    return ok("ledger", f"{database.url}: opens and takes writes, schema version {version}")


def check_roots() -> Iterator[Finding]:
    """What runs of workers may read."""
    if ROOTS_VARIABLE not in os.environ:
        remedy = f"set {ROOTS_VARIABLE} for the workers to the directories of your recipes"
        yield warn("data roots", "not set here: runs that a worker starts read the inbox only", remedy)
        return
    for root in read_roots()[1:]:
        if not root.is_dir():
            yield fail("data roots", f"{root}: no such directory", f"make it, or take it out of {ROOTS_VARIABLE}")
        elif not os.access(root, os.R_OK | os.X_OK):
            yield fail("data roots", f"{root}: not readable", "let this user read it")
        elif root == Path(root.anchor):
            yield warn("data roots", f"{root}: everything", f"name only what recipes need in {ROOTS_VARIABLE}")
        else:
            yield ok("data roots", str(root))
    for address in read_url_roots():
        yield ok("data roots", f"{address}, not looked at")


def check_inbox(home: Path) -> Finding:
    """Whether prompts can land, and from whom."""
    inbox = home / INBOX
    landed = sum(1 for path in inbox.rglob("*.jsonl")) if inbox.is_dir() else 0
    said = f"{landed} files in {inbox}"
    secrets = os.environ.get(SECRETS_VARIABLE, "").split()
    if not secrets:
        return warn("inbox", f"{said}; no {SECRETS_VARIABLE}", "set it, where a webhook is to land prompts")
    try:
        Signatures(secrets)
    except UsageError as error:
        return fail("inbox", str(error), "")
    return ok("inbox", f"{said}; {len(secrets)} webhook secrets are set")


def _probe_directory(directory: Path, content: bytes) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f".doctor-{uuid.uuid4().hex}"
    try:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _compare(path.read_bytes(), content)
    finally:
        path.unlink(missing_ok=True)


def _probe_remote(url: str, content: bytes) -> None:
    from fsspec.core import url_to_fs

    found: tuple[Any, str] = url_to_fs(url.rstrip("/"))
    system, root = found
    path = f"{root}/.doctor-{uuid.uuid4().hex}"
    system.pipe_file(path, content)
    try:
        _compare(system.cat_file(path), content)
    finally:
        system.rm_file(path)


def _compare(found: bytes, written: bytes) -> None:
    if found != written:
        raise OSError("what was read is not what was written")
