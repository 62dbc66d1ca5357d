from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledger.postgres import PostgresServer, find_server, is_required, running_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    binaries = find_server()
    if binaries is None:
        missing = "PostgreSQL is not installed: apt install postgresql"
        pytest.fail(missing) if is_required("postgresql") else pytest.skip(missing)
    with running_server(binaries) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a new database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgres").new_database()
