"""The Dask workers that ask a teacher: named by the environment, never by a recipe, since what a scheduler speaks is pickle."""

import os
import re
from importlib.util import find_spec
from typing import NamedTuple

from potstill.errors import UsageError
from potstill.recipe import Teacher
from potstill.teacher.shares import check_shares

VARIABLE = "POTSTILL_DASK"
REMEDY = f"set {VARIABLE} to local:N, or to a scheduler's address such as tcp://host:8786"


class Cluster(NamedTuple):
    """Processes that are started on this machine for the run, or a scheduler that is there."""

    local_workers: int = 0
    address: str | None = None


def find_cluster(teacher: Teacher) -> Cluster:
    """The cluster that `POTSTILL_DASK` names.

    Errors: `UsageError` where it names none, where more workers than the teacher's caps would be started, where Dask is
    not installed, or where workers on other machines could not share the ledger.
    """
    named = os.environ.get(VARIABLE, "").strip()
    if not named:
        raise UsageError(f"compute.teach is dask, and {VARIABLE} is not set: {REMEDY}")
    cluster = _parse(named)
    if cluster.local_workers:
        check_shares(teacher, cluster.local_workers)
    else:
        _check_ledger(named)
    if find_spec("prefect_dask") is None:
        raise UsageError("compute.teach is dask, and Dask is not installed: pip install 'potstill[dask]'")
    return cluster


def _parse(named: str) -> Cluster:
    if (local := re.fullmatch(r"local:([1-9]\d{0,3})", named)) is not None:
        return Cluster(local_workers=int(local[1]))
    if re.fullmatch(r"(tcp|tls)://(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}", named):
        return Cluster(address=named)
    raise UsageError(f"{VARIABLE} {named!r} names no Dask workers: {REMEDY}")


def _check_ledger(named: str) -> None:
    """SQLite's locks hold on one machine; a scheduler's workers may be anywhere."""
    from potstill.ledger.database import LEDGER_VARIABLE

    if not os.environ.get(LEDGER_VARIABLE, "").startswith("postgresql"):
        raise UsageError(
            f"the Dask workers of {named} cannot share a ledger in SQLite: set {LEDGER_VARIABLE} to "
            "postgresql://user@host/database, here and for each worker"
        )
