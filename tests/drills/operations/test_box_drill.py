"""`make up` in a clean clone, a run of the demo by schedule through the death of everything, `make down`: nothing is left."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import httpx
import psutil
import psycopg
import pytest

from deployments.box.leftovers import FLOW_RUN, marked
from potstill.cli import COMMANDS
from potstill.promotions import read_aliases
from tests.box import ROOT, ClonedBox, cloned_box, eventually, is_alive, memory_mib
from tests.postgres import PostgresServer

pytestmark = pytest.mark.drill

DEPLOYMENT = "redistill/demo"
"""What the schedule starts."""
TIMEZONE = "Europe/London"
DEMO_SECONDS = 2400
UP_SECONDS = 180
"""In these a box is up, on a busy machine too."""
SLEEPY = "tests/deployments/sleepy.py:sleepy"
SECRET = "whsec_" + "A" * 32


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClonedBox]:
    roots = ["examples", str(tmp_path_factory.getbasetemp())]
    with cloned_box(tmp_path_factory.mktemp("box"), data_roots=roots) as box:
        if "webhook" in COMMANDS:
            box.env["POTSTILL_WEBHOOK_SECRETS"] = SECRET
        started = time.monotonic()
        print("\n" + box.up())
        print(f"up after {time.monotonic() - started:.1f} s, {memory_mib(box.state.mark):.0f} MiB")
        yield box


def listening(mark: str) -> set[tuple[str, int]]:
    pids = {process.pid for process in marked(mark)} | {os.getpid()}
    return {
        (found.laddr.ip, found.laddr.port)
        for found in psutil.net_connections("inet")
        if found.status == psutil.CONN_LISTEN and found.pid in pids and found.pid != os.getpid()
    }


def test_a_second_make_up_says_that_it_is_up(box: ClonedBox) -> None:
    before = box.state
    assert "a box is up already" in box.up()
    assert box.state == before
    status = box.make("status")
    assert status.returncode == 0
    assert str(box.kept("server").pid) in status.stdout


def test_it_listens_on_this_machine_only_and_shows_its_secrets_to_nobody(box: ClonedBox) -> None:
    state = box.state
    found = listening(state.mark)
    assert {address for address, _ in found} == {"127.0.0.1"}
    assert {box.ports["server"], box.ports["reports"]} <= {port for _, port in found}
    secret = (box.api.auth or "").partition(":")[2]
    lines = [" ".join(process.cmdline()) for process in marked(state.mark)]
    assert not [line for line in lines if secret in line or SECRET in line]
    assert httpx.get(f"{box.api.url}/deployments/count").status_code in {401, 405}
    assert httpx.post(f"{box.api.url}/deployments/filter", json={}).status_code == 401
    for path in (box.places.auth, box.places.env):
        assert path.stat().st_mode & 0o077 == 0
    assert secret not in box.logs()


def test_the_schedule_starts_a_run_which_outlives_its_server_and_its_worker(
    box: ClonedBox,
    tmp_path: Path,
    write_tickets: Callable[..., Any],
    replay_teacher: Callable[..., AbstractContextManager[str]],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> None:
    tickets = write_tickets(box.places.home / "inbox" / "tickets", 400)
    with replay_teacher(tickets.answers, latency_ms=500) as teacher:
        run = start_by_schedule(box, tiny_recipe(tickets.log, teacher))
        for name in ("server", "cpu-1"):
            before = box.kept(name)
            assert before.pid
            os.kill(before.pid, signal.SIGKILL)
            killed = time.monotonic()
            after = box.await_another(name, before)
            print(f"{name}: killed, answers again as {after.pid} after {time.monotonic() - killed:.1f} s")
        assert box.run_state(run)["type"] == "RUNNING", "both died in the middle of it"
        await_completed(box, run)


def test_the_gateway_has_come_up_by_itself_and_the_report_is_shown(box: ClonedBox) -> None:
    eventually(lambda: box.kept("gateway").condition == "up", seconds=180)
    models = httpx.get(f"http://127.0.0.1:{box.ports['gateway']}/v1/models", timeout=30).json()
    assert "tickets" in {model["id"] for model in models["data"]}
    [report] = (box.places.home / "reports").glob("tickets/*/report.html")
    path = report.relative_to(box.places.home / "reports")
    url = f"http://127.0.0.1:{box.ports['reports']}/{path}"
    assert httpx.get(url).status_code == 401
    user, _, password = (box.api.auth or "").partition(":")
    assert httpx.get(url, auth=(user, password)).text == report.read_text()


def test_the_schedule_of_prefect_yaml_that_the_box_turns_on_starts_the_demo(
    tmp_path: Path, replay_teacher: Callable[..., AbstractContextManager[str]]
) -> None:
    with (
        replay_teacher(ROOT / "examples" / "demo" / "answers.jsonl", latency_ms=30) as teacher,
        cloned_box(tmp_path, data_roots=["examples"], schedules=[DEPLOYMENT], gateway=None, webhook=None) as box,
    ):
        box.change("recipes/demo.yaml", "http://127.0.0.1:8377/v1", teacher)
        due = datetime.now(UTC) + timedelta(seconds=UP_SECONDS)
        box.change("prefect.yaml", "0 2 * * *", f"{due.minute} {due.hour} * * *")
        box.up()
        run = await_scheduled(box, lambda run: run["auto_scheduled"], "demo")
        await_completed(box, run)
        assert read_aliases(box.places.home / "releases" / "demo").champion is not None


def start_by_schedule(box: ClonedBox, recipe: dict[str, Any]) -> str:
    """A run of the deployment with this recipe, begun by a schedule that is due in a minute or two."""
    deployment = box.deployment(DEPLOYMENT)["id"]
    due = datetime.now(ZoneInfo(TIMEZONE)) + timedelta(seconds=120)
    schedule = {"cron": f"{due.minute} {due.hour} * * *", "timezone": TIMEZONE}
    body = [{"schedule": schedule, "active": True, "parameters": {"recipe": recipe}, "slug": recipe["name"]}]
    [made] = box.ask("POST", f"/deployments/{deployment}/schedules", body)
    return await_scheduled(box, lambda run: (run["created_by"] or {}).get("id") == made["id"], recipe["name"])


def await_scheduled(box: ClonedBox, is_it: Callable[[dict[str, Any]], bool], name: str) -> str:
    """The first such run of the deployment, once it runs."""
    deployment = box.deployment(DEPLOYMENT)["id"]
    query = {"deployments": {"id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
    run = eventually(lambda: next(filter(is_it, box.ask("POST", "/flow_runs/filter", query)), None), seconds=120)
    assert run["auto_scheduled"]
    box.await_run(run["id"], {"RUNNING"}, seconds=400)
    late = (datetime.now(UTC) - datetime.fromisoformat(run["expected_start_time"])).total_seconds()
    print(f"\n{name}: scheduled for {run['expected_start_time']}, runs {late:.0f} s later")
    return run["id"]


def await_completed(box: ClonedBox, run: str) -> None:
    started, peak = time.monotonic(), 0.0
    while box.run_state(run)["type"] not in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}:
        assert time.monotonic() - started < DEMO_SECONDS
        peak = max(peak, memory_mib(box.state.mark))
        time.sleep(5)
    state = box.run_state(run)
    print(f"{state['name']} after {time.monotonic() - started:.0f} s, at most {peak:.0f} MiB in all")
    assert state["name"] == "Completed", f"{state['message']}\n{box.logs()}"


def test_a_supervisor_that_is_killed_with_its_keeper_is_cleaned_up_after_by_the_next_make_up(box: ClonedBox) -> None:
    before = box.state
    keeper = next(process for process in marked(before.mark) if "potstill.keeper" in process.cmdline())
    keeper.kill()
    os.kill(before.supervisor.pid, signal.SIGKILL)
    assert box.make("status").returncode != 0
    assert "processes that an earlier supervisor left" in box.up()
    assert marked(before.mark) == []
    assert box.state.mark != before.mark


def test_a_supervisor_that_is_killed_alone_leaves_nothing(box: ClonedBox) -> None:
    before = box.state
    os.kill(before.supervisor.pid, signal.SIGKILL)
    killed = time.monotonic()
    eventually(lambda: not marked(before.mark))
    print(f"\nall gone {time.monotonic() - killed:.1f} s after the supervisor was killed")
    box.up()


def test_down_leaves_nothing_and_no_port_open(box: ClonedBox) -> None:
    state = box.state
    running = marked(state.mark)
    assert len(running) >= 5
    started = time.monotonic()
    done = box.make("down")
    print(f"\ndown after {time.monotonic() - started:.1f} s")
    assert (done.returncode, done.stdout) == (0, "down\n")
    assert not any(is_alive(pid) for pid in [state.supervisor.pid, *(process.pid for process in running)])
    assert marked(state.mark) == []
    assert [process for process in psutil.process_iter() if belongs_to(process, box.places.home)] == []
    assert box.open_ports() == {}
    assert "nothing is up" in box.make("down").stdout


def belongs_to(process: psutil.Process, home: Path) -> bool:
    try:
        return process.environ().get("POTSTILL_HOME") == str(home)
    except psutil.Error:
        return False


def test_the_same_on_postgresql(postgres: PostgresServer, tmp_path: Path) -> None:
    address = postgres.new_database()
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("CREATE DATABASE box")
    with cloned_box(tmp_path, gateway=None, webhook=None) as box:
        box.env["POTSTILL_PREFECT_DATABASE"] = (
            f"postgresql://postgres@{urlsplit(address).netloc.rpartition('@')[2]}/box"
        )
        box.deploy_also("here", SLEEPY, "cpu")
        started = time.monotonic()
        box.up()
        print(f"\nup on PostgreSQL after {time.monotonic() - started:.1f} s, {memory_mib(box.state.mark):.0f} MiB")
        log = tmp_path / "log"
        run = box.start_run("sleepy/here", parameters={"path": str(log), "seconds": 15})
        eventually(lambda: log.exists() and log.read_text())
        before = box.kept("server")
        assert before.pid
        os.kill(before.pid, signal.SIGKILL)
        box.await_another("server", before)
        assert box.await_run(run, {"COMPLETED", "FAILED", "CRASHED"})["type"] == "COMPLETED"
        assert not box.places.database.exists()
        variables = log.read_text()
        assert "POTSTILL_PREFECT_DATABASE" not in variables
        assert "DATABASE_CONNECTION_URL" not in variables
        assert FLOW_RUN in variables
        mark = box.state.mark
        assert box.make("down").returncode == 0
        assert marked(mark) == []
        assert box.open_ports() == {}
