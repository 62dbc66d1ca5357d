"""One Prefect server for all flow tests, in a temporary home."""

from collections.abc import Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness


@pytest.fixture(scope="session", autouse=True)
def prefect_server() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        yield from _served()


def _served() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield
