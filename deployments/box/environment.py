"""What each process of the box has in its environment: no secret that it does not need, and none on a command line."""

import os
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from deployments.box.config import HOST, ROOT, Box
from deployments.box.places import Places
from potstill.approval import APPROVAL_VARIABLE
from potstill.keeper import MARK
from potstill.llm.keys import without_keys
from potstill.prefect_api import AUTH_VARIABLE, URL_VARIABLE, PrefectApi

SERVER_AUTH = "PREFECT_SERVER_API_AUTH_STRING"
DATABASE_VARIABLES = (
    "POTSTILL_PREFECT_DATABASE",
    "PREFECT_API_DATABASE_CONNECTION_URL",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL",
)
"""The first that is set names the server's database; with none it is SQLite."""
WEBHOOK_SECRETS = "POTSTILL_WEBHOOK_SECRETS"
LEDGER_VARIABLE = "POTSTILL_LEDGER"
PRIVATE = (*DATABASE_VARIABLES, WEBHOOK_SECRETS, LEDGER_VARIABLE, AUTH_VARIABLE)
"""Given only to the processes that need them; so are the keys of teachers."""
OF_ANOTHER_SERVER = (
    *(URL_VARIABLE, AUTH_VARIABLE, SERVER_AUTH, "PREFECT_API_KEY", "PREFECT_PROFILE"),
    *("PREFECT_UI_API_URL", "PREFECT_DEFAULT_WORK_POOL_NAME"),
)
"""What would send a process of the box to another server, or a deployment to another pool."""
FOR_RUNS = {
    "PREFECT_CLIENT_MAX_RETRIES": "10",  # on SQLite under load the server answers 503 more often than 5 retries bear
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # without it nobody sees that a run has died with its worker
}


LEASES_ON_DISK = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}
"""Of a server: the leases of runs' slots lie below its `PREFECT_HOME` and outlast it. In its memory, its death would end all runs."""
FOR_SHELLS = ("POTSTILL_REPORTS_URL", APPROVAL_VARIABLE)
"""What commands by hand share with the workers, where it is set."""


class Environments(NamedTuple):
    """The variables of each kind of process, beside those of the supervisor."""

    api: PrefectApi
    server: Mapping[str, str]
    client: Mapping[str, str]
    """What sets up the server, and looks at it."""
    worker: Mapping[str, str]
    """All that the user has set: runs need the teacher's key."""
    gpu_worker: Mapping[str, str]
    """The same without the teachers' keys and the ledger: a student is trained and asked without either."""
    webhook: Mapping[str, str]
    reports: Mapping[str, str]
    """The auth string, which it asks for."""


def _root(named: str) -> str:
    return named if named.startswith("s3://") else str((ROOT / named).absolute())


def environments(box: Box, places: Places, given: Mapping[str, str]) -> Environments:
    """What the processes get, from what the user has set."""
    api = PrefectApi(f"http://{HOST}:{box.server.port}/api", auth_string(places.auth))
    client = {URL_VARIABLE: api.url, AUTH_VARIABLE: api.auth or ""}
    roots = [*map(_root, box.data_roots), str(places.home / "inbox")]
    worker = {
        **{name: value for name, value in given.items() if not _is_foreign(name)},
        **client,
        **FOR_RUNS,
        "POTSTILL_DATA_ROOTS": given.get("POTSTILL_DATA_ROOTS") or os.pathsep.join(roots),
    }
    if box.reports is not None:
        worker.setdefault("POTSTILL_REPORTS_URL", f"http://{HOST}:{box.reports.port}")
    return Environments(
        api,
        server={
            SERVER_AUTH: api.auth or "",
            **client,
            **LEASES_ON_DISK,
            "PREFECT_API_DATABASE_CONNECTION_URL": database(places, given),
        },
        client=client,
        worker=worker,
        gpu_worker={name: value for name, value in without_keys(worker).items() if name != LEDGER_VARIABLE},
        webhook={**client, WEBHOOK_SECRETS: given.get(WEBHOOK_SECRETS, "")},
        reports={AUTH_VARIABLE: api.auth or ""},
    )


def enter(places: Places) -> dict[str, str]:
    """Make this process's environment what all of the box share, and return what it was."""
    given = dict(os.environ)
    kept = {name: value for name, value in without_keys(given).items() if not _is_foreign(name) and name not in PRIVATE}
    path = os.pathsep.join(filter(None, [str(ROOT), given.get("PYTHONPATH")]))
    shared = {
        "POTSTILL_HOME": str(places.home),
        "PREFECT_HOME": str(places.home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONPATH": path,  # the code of this checkout, whatever is installed
        "PWD": str(ROOT),  # prefect.yaml takes the checkout's place from here
    }
    os.environ.clear()
    os.environ.update(kept | shared)
    return given | shared


def auth_string(path: Path) -> str:
    """The user and password of Prefect's API; made once, for this user's eyes only."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        pass
    made = f"potstill:{secrets.token_urlsafe(32)}"
    _write_private(path, f"{made}\n")
    return made


def write_shell_file(places: Places, found: Environments) -> None:
    """What a shell sources so that `prefect` and `potstill` speak with this box."""
    names = {
        "POTSTILL_HOME": str(places.home),
        "PREFECT_HOME": str(places.home / "prefect"),
        **found.client,
        **{name: found.worker[name] for name in FOR_SHELLS if name in found.worker},
    }
    text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in names.items())
    _write_private(places.env, text)


def database(places: Places, given: Mapping[str, str]) -> str:
    """The address of the Prefect server's database."""
    named = next(filter(None, map(given.get, DATABASE_VARIABLES)), None)
    if named is None:
        return f"sqlite+aiosqlite:///{places.database}"
    scheme, separator, rest = named.partition("://")
    return f"postgresql+asyncpg://{rest}" if separator and scheme in {"postgres", "postgresql"} else named


def _is_foreign(name: str) -> bool:
    return name in OF_ANOTHER_SERVER or name in DATABASE_VARIABLES or name in {MARK, WEBHOOK_SECRETS}


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)
