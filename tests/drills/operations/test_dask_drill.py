"""Teacher batches on Dask: the caps and the budget hold over all workers, and whoever dies, nothing more is asked than must be."""

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness
from sqlalchemy import create_engine, text

from bench.fast_teacher.running import RunningTeacher, running
from tests.dask_processes import RUN_SECONDS, Stage, scheduler, wait_until, worker, workers, working_child
from tests.postgres import PostgresServer
from tests.teaching import PRICE, bill_usd

pytestmark = pytest.mark.drill

PROMPTS = 5000
RPM, CONCURRENCY, LATENCY_SECONDS = 15_000, 40, 0.2
FEW, SLOWLY = 1500, 8
"""Prompts and concurrency of the runs that somebody kills: 40 requests a second."""
QUIET_SECONDS = 6.0


def recipe(teacher: RunningTeacher, *, where: str = "dask", budget: str | None = None, **fields: Any) -> dict[str, Any]:
    asked = {
        "provider": "openai_compatible",
        "model": "fake-1",
        "base_url": teacher.url,
        "price": {"input_per_million": str(PRICE[0]), "output_per_million": str(PRICE[1])},
        "max_tokens": 256,
        "batch_size": 64,
        **fields,
    }
    return {
        "name": "drill",
        "task": {"kind": "extraction"},
        "curation": {"inputs": ["log.jsonl"]},
        "teacher": asked,
        "budget": {"run_usd": budget},
        "student": {"base": "none"},
        "compute": {"teach": where},
    }


def statuses(url: str) -> Counter[str]:
    """How many attempts of each status a ledger holds."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        found = Counter(
            {row[0]: row[1] for row in connection.execute(text("SELECT status, count(*) FROM attempts GROUP BY 1"))}
        )
    engine.dispose()
    return found


def most_in(times: list[float], seconds: float) -> int:
    """The most requests that came within so long."""
    first, most = 0, 0
    for index, at in enumerate(times):
        while at - times[first] >= seconds:
            first += 1
        most = max(most, index - first + 1)
    return most


@pytest.fixture(scope="module")
def prefect_url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        with prefect_test_harness(server_startup_timeout=120):
            url = PREFECT_API_URL.value()
            assert url is not None
            yield url


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What one process makes of the same prompts."""
    with running(latency_ms=1000 * LATENCY_SECONDS) as teacher:
        stage = Stage(
            tmp_path_factory.mktemp("alone"), recipe(teacher, where="threads", concurrency=CONCURRENCY), PROMPTS
        )
        told = stage.finish()
        print(f"\nthreads: {PROMPTS} prompts in {told['seconds']:.1f} s")
        return stage.answers(told)


@pytest.mark.parametrize("cap", ["concurrency", "rpm"])
@pytest.mark.parametrize("ledger", ["sqlite", "postgresql"])
def test_two_workers_keep_to_the_caps_and_the_budget_and_make_what_one_process_makes(
    tmp_path: Path, request: pytest.FixtureRequest, alone: str, ledger: str, cap: str
) -> None:
    env = {"POTSTILL_DASK": "local:2"}
    url = f"sqlite:///{tmp_path / 'home/ledger.db'}"
    if ledger == "postgresql":
        url = env["POTSTILL_LEDGER"] = request.getfixturevalue("postgres").new_database()
    caps = {"concurrency": CONCURRENCY} if cap == "concurrency" else {"concurrency": 128, "rpm": RPM}
    budget = "4"
    with running(latency_ms=1000 * LATENCY_SECONDS) as teacher:
        poor = Stage(tmp_path, recipe(teacher, budget=budget, **caps), PROMPTS, env)
        assert poor.start().wait(RUN_SECONDS) != 0
        assert f"budget run_usd {budget} USD reached" in poor.said()
        at_the_cap = teacher.log()
        spent = bill_usd(at_the_cap.requests)
        assert Decimal(budget) * Decimal("0.98") < spent <= Decimal(budget)
        began = time.time()
        rich = poor._replace(recipe=recipe(teacher, budget="100", **caps))
        told = rich.finish()
        log = teacher.log()
    assert rich.answers(told) == alone
    assert len(log.requests) == PROMPTS == len(log.answered())
    assert statuses(url) == {"answered": PROMPTS}
    times = [row.at for row in log.since(began).requests]
    in_flight = most_in(times, LATENCY_SECONDS)
    in_a_second = most_in(times, 1.0)
    if cap == "concurrency":
        assert in_flight <= CONCURRENCY
    else:
        assert most_in(times, 6.0) <= RPM / 10 + 2 * RPM / 60 * 0.03, "each of two may be 20 ms late, and once early"
    print(
        f"\n{ledger}, {cap}: {len(at_the_cap.requests)} requests for {spent} USD of {budget}, then {len(times)} in "
        f"{told['seconds']:.1f} s; at most {in_flight} in flight, {in_a_second} in a second, {most_in(times, 6.0)} in six"
    )


def test_limits_that_a_server_tells_are_shared_without_a_storm_of_refusals(tmp_path: Path) -> None:
    with running(latency_ms=200, rpm=3000, burst_seconds=5) as teacher:
        stage = Stage(tmp_path, recipe(teacher, concurrency=64), 2000, {"POTSTILL_DASK": "local:2"})
        stage.finish()
        stats = teacher.stats()
        seconds = teacher.log().span_seconds()
    share = stats["refused_by_limiter"] / stats["requests"]
    print(
        f"\ntold limit: {stats['capacity_used']} used, {stats['refused_by_limiter']} of {stats['requests']} refused, {seconds:.0f} s"
    )
    assert share <= 0.01
    assert stats["capacity_used"]["requests"] >= 0.9


def slow(teacher: RunningTeacher) -> dict[str, Any]:
    return recipe(teacher, concurrency=SLOWLY, batch_size=50)


def count(teacher: RunningTeacher) -> int:
    return teacher.stats()["requests"]


def begun(teacher: RunningTeacher, number: int = 100) -> None:
    wait_until(lambda: count(teacher) >= number, 90)


def seconds_of_spending(teacher: RunningTeacher, since: float) -> float:
    """How long after that requests still came, once none has come for a while."""
    last = -1
    while (now := count(teacher)) != last:
        last = now
        time.sleep(QUIET_SECONDS)
    return max(0.0, teacher.log().requests[-1].at - since)


def finish_and_check(stage: Stage, teacher: RunningTeacher, url: str, most_lost: int) -> None:
    """Run it again: nothing is asked twice but what was in flight when somebody died."""
    stage.finish()
    log = teacher.log()
    found = statuses(url)
    assert len(log.answered()) == FEW
    assert found["answered"] == FEW
    assert found["in_flight"] == 0
    assert found["unknown"] <= most_lost
    assert len(log.requests) <= FEW + found["unknown"]
    print(f"  then all {FEW} answered by {len(log.requests)} requests, {found['unknown']} unknown")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL], ids=["cancelled", "killed"])
def test_local_workers_end_with_the_run_that_started_them(tmp_path: Path, sent: signal.Signals) -> None:
    with running(latency_ms=200) as teacher:
        stage = Stage(tmp_path, slow(teacher), FEW, {"POTSTILL_DASK": "local:2"})
        process = stage.start()
        begun(teacher)
        sockets = [it for process in stage.processes() for it in process.net_connections() if it.status == "LISTEN"]
        assert {it.laddr.ip for it in sockets} == {"127.0.0.1"}
        process.send_signal(sent)
        at = time.time()
        process.wait(60)
        ended = time.time() - at
        spending = seconds_of_spending(teacher, at)
        # a test starts no keeper, which ends Prefect's temporary server; Dask's processes end by themselves
        left = [it for it in stage.processes() if "spawn_main" in " ".join(it.cmdline())]
        print(f"\nlocal, {sent.name}: over after {ended:.1f} s, the last request {spending:.1f} s later")
        assert spending < 5
        assert left == []
        for server in stage.processes():
            server.kill()
        finish_and_check(stage, teacher, f"sqlite:///{stage.home / 'ledger.db'}", SLOWLY)


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.new_database()


def remote(root: Path, teacher: RunningTeacher, address: str, url: str, prefect_url: str) -> Stage:
    env = {"POTSTILL_DASK": address, "POTSTILL_LEDGER": url, "PREFECT_API_URL": prefect_url}
    return Stage(root, slow(teacher), FEW, env)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL], ids=["cancelled", "killed"])
def test_workers_of_a_scheduler_stop_asking_when_the_run_is_gone(
    tmp_path: Path, url: str, prefect_url: str, sent: signal.Signals
) -> None:
    with running(latency_ms=200) as teacher, scheduler(tmp_path) as address:
        stage = remote(tmp_path / "stage", teacher, address, url, prefect_url)
        with workers(address, stage, "one", "two"):
            process = stage.start()
            begun(teacher)
            process.send_signal(sent)
            at = time.time()
            process.wait(60)
            ended = time.time() - at
            spending = seconds_of_spending(teacher, at)
            print(f"\nscheduler, {sent.name}: over after {ended:.1f} s, the last request {spending:.1f} s later")
            assert spending < 5
            finish_and_check(stage, teacher, url, SLOWLY)


def test_a_worker_that_is_killed_is_replaced_and_others_may_join(tmp_path: Path, url: str, prefect_url: str) -> None:
    with running(latency_ms=200) as teacher, scheduler(tmp_path) as address:
        stage = remote(tmp_path / "stage", teacher, address, url, prefect_url)
        with workers(address, stage, "one", "two") as (one, _):
            process = stage.start()
            begun(teacher)
            working_child(one).kill()
            begun(teacher, 300)
            with worker(address, stage, "three"):
                begun(teacher, 800)
                joined = [it for it in stage.processes() if "spawn_main" in " ".join(it.cmdline())]
            stage.finish(process)
            log = teacher.log()
            found = statuses(url)
            most = most_in([row.at for row in log.requests], LATENCY_SECONDS)
            print(
                f"\none killed, one joined and left: {len(log.requests)} requests, {dict(found)}, at most {most} in flight"
            )
            assert len(joined) >= 3
            assert len(log.answered()) == found["answered"] == FEW
            assert found["in_flight"] == 0
            assert most <= SLOWLY + SLOWLY // 2, "what the killed one had sent goes on at the teacher"
            assert len(log.requests) <= FEW + found["unknown"] <= FEW + 2 * SLOWLY


def test_a_scheduler_that_dies_ends_the_spending_and_the_run(tmp_path: Path, url: str, prefect_url: str) -> None:
    with running(latency_ms=200) as teacher, scheduler(tmp_path) as address:
        stage = remote(tmp_path / "stage", teacher, address, url, prefect_url)
        with workers(address, stage, "one", "two"):
            process = stage.start()
            begun(teacher)
            [it] = [it for it in psutil.Process().children() if "distributed.cli.dask_scheduler" in it.cmdline()]
            it.kill()
            at = time.time()
            spending = seconds_of_spending(teacher, at)
            assert process.wait(120) != 0
            print(
                f"\nscheduler killed: the last request {spending:.1f} s later, the run over after {time.time() - at:.1f} s"
            )
            assert spending < 5


def test_a_worker_without_the_ledger_of_the_run_is_named_before_anything_is_asked(
    tmp_path: Path, url: str, postgres: PostgresServer, prefect_url: str
) -> None:
    with running(latency_ms=200) as teacher, scheduler(tmp_path) as address:
        stage = remote(tmp_path / "stage", teacher, address, url, prefect_url)
        other = stage._replace(env={**stage.env, "POTSTILL_LEDGER": postgres.new_database()})
        with worker(address, other, "other"):
            assert stage.start().wait(120) != 0
        assert "writes another ledger" in stage.said()
        assert count(teacher) == 0
    assert json.loads((stage.root / "recipe.json").read_text())["compute"] == {"teach": "dask"}
