"""A PostgreSQL server of the Debian package, on a free port of this machine, for as long as the tests run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg

from tests.ports import free_port

REQUIRED_VARIABLE = "POTSTILL_TESTS_REQUIRE"
"""CI names what it has installed, separated by commas: what is missing all the same is a failure and no skip."""


def find_server() -> Path | None:
    """The directory of `initdb` and `postgres`; None where they are not installed."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = [Path(found).resolve().parent for found in (shutil.which("postgres"),) if found]
    return next((directory for directory in [*on_path, *installed] if (directory / "initdb").exists()), None)


def is_required(name: str) -> bool:
    return name in os.environ.get(REQUIRED_VARIABLE, "").split(",")


class PostgresServer:
    """A running server; `new_database` gives an address of its own to each test.

    It names an empty schema: a test sees the same of it as of a database, which takes a hundred times longer to make.
    """

    def __init__(self, port: int) -> None:
        self._address = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        self._numbers = count()

    def new_database(self) -> str:
        name = f"ledger_{next(self._numbers)}"
        with psycopg.connect(self._address, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
        return f"{self._address}?options=-csearch_path%3D{name}"

    def new_prefect_database(self) -> str:
        """The same for Prefect's server, which takes no schema of its own: a whole database."""
        name = f"prefect_{next(self._numbers)}"
        with psycopg.connect(self._address, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"{self._address.replace('postgresql', 'postgresql+asyncpg', 1).removesuffix('postgres')}{name}"


@contextmanager
def running_server(binaries: Path) -> Iterator[PostgresServer]:
    """PostgreSQL refuses to run as root: there it runs as the user that its package has made."""
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    with TemporaryDirectory(prefix="potstill-postgres-") as directory:
        if as_user:
            shutil.chown(directory, "postgres", "postgres")
        data, port = Path(directory) / "data", free_port()
        make = [*as_user, binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL, cwd=directory)
        serve = [*as_user, binaries / "postgres", "-D", data, "-p", str(port), "-k", directory, "-c", "fsync=off"]
        with subprocess.Popen(
            [*serve, "-c", "listen_addresses=127.0.0.1"], stderr=subprocess.DEVNULL, cwd=directory
        ) as server:
            try:
                _wait_until_it_answers(port, server)
                yield PostgresServer(port)
            finally:
                server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
                server.wait(timeout=30)


def _wait_until_it_answers(port: int, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres").close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit("PostgreSQL did not start")
            time.sleep(0.1)
        else:
            return
