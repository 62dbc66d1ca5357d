"""A box as `make up` starts it, with a flow that takes seconds: who may start what, what a dying server and worker cost."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.box.leftovers import marked
from potstill.errors import OrchestratorError
from potstill.inbox import Inbox
from potstill.recipe import Recipe
from potstill.recipe_file import load_recipe
from tests.box import ROOT, ClonedBox, cloned_box, eventually, is_alive

pytestmark = pytest.mark.flow

SLEEPY = "tests/deployments/sleepy.py:sleepy"
LONG_SECONDS = 300
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClonedBox]:
    roots = [str(tmp_path_factory.getbasetemp())]
    sections = {"gateway": None, "webhook": None, "stop_seconds": 20, "schedules": ["sleepy/here"], "data_roots": roots}
    with cloned_box(tmp_path_factory.mktemp("box"), **sections) as box:
        asleep = {"slug": "nightly", "cron": "0 2 1 1 *", "timezone": "Europe/London", "active": False}
        box.deploy_also("here", SLEEPY, "cpu", schedules=[asleep])
        box.deploy_also("there", SLEEPY, "gpu")
        box.up()
        yield box


def written(path: Path) -> list[dict[str, Any]]:
    """Its whole lines: the last one may be in writing."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def test_it_is_set_up_as_box_yaml_prefect_yaml_and_the_recipes_files_say(box: ClonedBox) -> None:
    pools = {pool["name"]: pool for pool in box.ask("POST", "/work_pools/filter", {})}
    assert {name: pool["concurrency_limit"] for name, pool in pools.items()} == {"cpu": 4, "gpu": 1}
    for name, pool in pools.items():
        assert pool["type"] == "process"
        assert pool["base_job_template"] == json.loads((ROOT / "deployments" / "pools" / f"{name}.json").read_text())
    demo = box.deployment("distill-student/demo")
    assert Recipe.model_validate(demo["parameters"]["recipe"]) == load_recipe(ROOT / "recipes" / "demo.yaml")
    assert demo["global_concurrency_limit"]["limit"] == 1
    assert demo["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    [schedule] = box.deployment("sleepy/here")["schedules"]
    assert schedule["active"], "off in prefect.yaml, but named in box.yaml"
    assert schedule["schedule"]["timezone"] == "Europe/London"


def test_a_schedule_makes_runs(box: ClonedBox) -> None:
    """SQLAlchemy 2.1 breaks Prefect 3.8's scheduler, and only its log says so."""
    of_sleepy = {"id": {"any_": [box.deployment("sleepy/here")["id"]]}}
    [run, *_] = eventually(lambda: box.ask("POST", "/flow_runs/filter", {"deployments": of_sleepy}), LONG_SECONDS)
    assert run["auto_scheduled"]
    assert run["state_type"] == "SCHEDULED"


def test_a_run_cannot_choose_its_command_folder_or_variables_but_its_card(box: ClonedBox, tmp_path: Path) -> None:
    evil = {"command": f"touch {tmp_path}/pwned", "working_dir": str(tmp_path), "env": {"PYTHONPATH": str(tmp_path)}}
    for name, value in evil.items():
        with pytest.raises(OrchestratorError, match=r"422.*Additional properties are not allowed"):
            box.start_run("sleepy/here", job_variables={name: value}, parameters={"path": str(tmp_path / "x")})
    # an API that checks nothing: the worker has to be as deaf
    deployment = box.deployment("sleepy/here")
    body = {"flow_id": deployment["flow_id"], "deployment_id": deployment["id"], "work_pool_name": "cpu"}
    parameters = {"path": str(tmp_path / "raw")}
    variables = {name: evil[name] for name in ("command", "working_dir")}
    raw = {**body, "job_variables": variables, "parameters": parameters, "state": {"type": "SCHEDULED"}}
    unchecked = box.api.post("/flow_runs/", raw)["id"]
    chosen = box.start_run(
        "sleepy/there", job_variables={"cuda_visible_devices": "1"}, parameters={"path": str(tmp_path / "gpu")}
    )
    for run in (unchecked, chosen):
        assert box.await_run(run, ENDED)["type"] == "COMPLETED"
    assert not (tmp_path / "pwned").exists()
    [start, end] = written(tmp_path / "raw")
    assert (start["cwd"], end) == (str(box.checkout), {"ended": "slept"})
    variables = start["variables"]
    assert variables["PREFECT_CLIENT_MAX_RETRIES"] == "10"
    assert variables["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert str(box.places.home / "inbox") in variables["POTSTILL_DATA_ROOTS"].split(os.pathsep)
    assert variables["POTSTILL_HOME"] == str(box.places.home)
    assert variables["POTSTILL_REPORTS_URL"] == f"http://127.0.0.1:{box.ports['reports']}"
    assert written(tmp_path / "gpu")[0]["variables"]["CUDA_VISIBLE_DEVICES"] == "1"


def test_who_has_no_auth_string_is_refused_and_the_shells_file_has_it(box: ClonedBox) -> None:
    for auth in (None, httpx.BasicAuth("potstill", "guess")):
        reply = httpx.post(f"{box.api.url}/flow_runs/filter", json={}, auth=auth)
        assert reply.status_code == 401
    shell = box.environment()
    assert shell["PREFECT_API_URL"] == box.api.url
    assert shell["PREFECT_API_AUTH_STRING"] == box.api.auth


@pytest.mark.drill
def test_a_run_outlives_the_death_of_its_server_and_of_its_worker(box: ClonedBox, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run = box.start_run("sleepy/here", parameters={"path": str(log), "seconds": 10})
    eventually(lambda: written(log), LONG_SECONDS)
    server, worker = box.kept("server"), box.kept("cpu-1")
    for kept in (server, worker):
        assert kept.pid
        os.kill(kept.pid, signal.SIGKILL)
    killed = time.monotonic()
    box.await_another("server", server)
    box.await_another("cpu-1", worker)
    print(f"\nserver and worker answer again after {time.monotonic() - killed:.1f} s")
    assert box.await_run(run, ENDED)["type"] == "COMPLETED"
    assert [row.get("ended") for row in written(log)] == [None, "slept"]


def test_a_night_is_skipped_then_distilled_on_pool_gpu_and_released_once_somebody_approves(
    box: ClonedBox,
    tmp_path: Path,
    write_tickets: Callable[..., Any],
    replay_teacher: Callable[..., AbstractContextManager[str]],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> None:
    tickets = write_tickets(tmp_path / "log", 400)
    with replay_teacher(tickets.answers) as teacher:
        recipe = tiny_recipe(tickets.log, teacher, gate={"approval": "ask"})
        recipe["curation"]["inputs"] = ["inbox"]
        recipe["compute"] = {"train": "pool"}
        parameters = {"recipe": recipe}
        empty = box.await_run(box.start_run("redistill/demo", parameters=parameters), ENDED, LONG_SECONDS)
        assert (empty["name"], empty["message"][:22]) == ("Skipped", "0 new prompts of 0 and")

        with Inbox(box.places.home, "tickets") as inbox:
            inbox.land("msg_1", "0" * 64, tickets.log.read_bytes().splitlines(keepends=True))
        run = box.start_run("redistill/demo", parameters=parameters)
        assert box.await_run(run, ENDED | {"PAUSED"}, LONG_SECONDS)["name"] == "Suspended"
        children = box.ask("POST", "/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}})
        assert {(child["work_pool_name"], child["state_name"]) for child in children} == {("gpu", "Completed")}
        word = {"verdict": "approve", "approver": "Jo Bloggs", "reason": "read 20 answers"}
        box.ask("POST", f"/flow_runs/{run}/resume", {"run_input": word})
        ended = box.await_run(run, ENDED, LONG_SECONDS)
        assert ended["name"] == "Completed", ended["message"]
        assert "is released, approved by Jo Bloggs" in ended["message"]


def test_down_lets_a_run_save_and_leaves_nothing(box: ClonedBox, tmp_path: Path) -> None:
    log = tmp_path / "log"
    box.start_run("sleepy/here", parameters={"path": str(log), "seconds": 300})
    eventually(lambda: written(log), LONG_SECONDS)
    state = box.state
    started = time.monotonic()
    done = box.make("down")
    print(f"\ndown after {time.monotonic() - started:.1f} s")
    assert (done.returncode, done.stdout) == (0, "down\n")
    assert [row.get("ended") for row in written(log)] == [None, "TerminationSignal", "saved"]
    assert marked(state.mark) == []
    assert not any(is_alive(kept.pid) for kept in state.processes)
    assert box.open_ports() == {}
    assert box.make("down").stdout == "nothing is up\n"
