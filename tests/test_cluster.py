"""Which Dask workers ask a teacher is said by the environment, and checked before anything is paid for."""

import pytest

from potstill.cluster import Cluster, find_cluster
from potstill.errors import UsageError
from potstill.recipe import Compute
from tests.fake_teacher import make_teacher

TEACHER = make_teacher("http://127.0.0.1:1/v1", concurrency=8)


@pytest.fixture(autouse=True)
def postgres_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_LEDGER", "postgresql://u@db/ledger")


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("local:2", Cluster(local_workers=2)),
        ("tcp://dask-scheduler:8786", Cluster(address="tcp://dask-scheduler:8786")),
        ("tls://10.0.0.7:8786", Cluster(address="tls://10.0.0.7:8786")),
        ("tcp://[::1]:8786", Cluster(address="tcp://[::1]:8786")),
    ],
)
def test_local_workers_and_addresses_are_told_apart(
    named: str, found: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_DASK", named)
    assert find_cluster(TEACHER) == found


@pytest.mark.parametrize("named", ["", "local", "local:0", "local:x", "scheduler:8786", "inproc://1", "tcp://a:1/x y"])
def test_what_names_no_workers_is_told_with_the_remedy(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_DASK", named)
    with pytest.raises(UsageError, match="set POTSTILL_DASK to local:N, or to a scheduler's address"):
        find_cluster(TEACHER)


def test_more_local_workers_than_requests_in_flight_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_DASK", "local:9")
    with pytest.raises(UsageError, match="concurrency 8 cannot be divided among 9"):
        find_cluster(TEACHER)


@pytest.mark.parametrize("ledger", [None, "sqlite:///ledger.db"])
def test_workers_of_a_scheduler_need_a_ledger_in_postgresql(
    ledger: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_DASK", "tcp://host:8786")
    monkeypatch.delenv("POTSTILL_LEDGER")
    if ledger:
        monkeypatch.setenv("POTSTILL_LEDGER", ledger)
    with pytest.raises(UsageError, match="cannot share a ledger in SQLite: set POTSTILL_LEDGER to postgresql"):
        find_cluster(TEACHER)


def test_no_recipe_names_a_scheduler() -> None:
    """What a scheduler speaks is pickle: whoever chose its address could run code here."""
    assert set(Compute.model_fields) == {"train", "teach"}
    assert Compute.model_json_schema()["properties"]["teach"]["enum"] == ["threads", "dask"]
