"""Runs of the real flow by a real worker that end in each way, and one that reaches its budget: each is told once, with its recipe."""

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fake_teacher import FakeTeacher
from tests.prefect_server import PREFECT, RunningServer, make_pool, prefect_server, running, wait_for
from tests.receivers import receivers

pytestmark = pytest.mark.drill

FILE = "notify: [{to: webhook, url_env: HOOK_URL}]"
RUN_SECONDS = 180
BUDGET_USD = 0.002
"""For some of 400 prompts."""


def test_each_way_in_which_a_run_ends_is_told_once_with_its_recipe(
    tmp_path: Path,
    write_tickets: Callable[..., Any],
    replay_teacher: Callable[..., Any],
    tiny_recipe: Callable[..., dict[str, Any]],
    tiny_base: Path,
) -> None:
    (tmp_path / "alerts.yaml").write_text(FILE)
    roots = f"{tmp_path}:{tiny_base}"
    tickets, few = write_tickets(tmp_path / "log", 400), write_tickets(tmp_path / "few", 40)
    unasked = write_tickets(tmp_path / "unasked", 100, first=400)
    with (
        receivers(tmp_path) as got,
        prefect_server(tmp_path, POTSTILL_DATA_ROOTS=roots) as server,
        replay_teacher(tickets.answers) as teacher,
    ):
        make_pool(server, "cpu", 4)
        make_pool(server, "gpu", 1)
        server.call("-m", "prefect", "--no-prompt", "deploy", "--all")
        server.call("-m", "deployments.alerts", str(tmp_path / "alerts.yaml"), HOOK_URL=got.webhook_url)
        with running((*PREFECT, "worker", "start", "--pool", "cpu"), server.env, tmp_path / "worker.log"):
            missing = tiny_recipe(tmp_path / "nowhere.jsonl", teacher)
            untrained = tiny_recipe(tickets.log, teacher, training={"epochs": 1, "learning_rate": 1e-9})
            ends = {
                "failed": _end(server, missing | {"name": "missing"}),
                "undecided": _end(server, tiny_recipe(few.log, teacher) | {"name": "few"}),
                "rejected": _end(server, untrained | {"name": "untrained"}),
                "released": _end(server, tiny_recipe(tickets.log, teacher)),
                "stopped at its budget": _end(
                    server, _poor(tiny_recipe(tickets.log, teacher, teacher={"max_tokens": 17}))
                ),
            }
            with FakeTeacher(latency=0.5, answer=lambda _: "billing") as slow:
                run = _start(server, tiny_recipe(unasked.log, slow.url) | {"name": "killed"})
                slow.wait_for(5, seconds=RUN_SECONDS)
                os.kill(_process_of(run), signal.SIGKILL)
                ends["crashed"] = _wait_for_end(server, run)
        print(f"\n{json.dumps(ends)}")
        wait_for(lambda: len(got.webhook) >= 7, 30)
        told = [(_without_share(message.body["subject"]), _alert(message.body["body"])) for message in got.webhook]
    assert ends == {
        "failed": "Failed",
        "undecided": "GateUndecided",
        "rejected": "GateRejected",
        "released": "Completed",
        "stopped at its budget": "Failed",
        "crashed": "Crashed",
    }
    assert Counter(told) == {
        ("Potstill: missing failed", "failed"): 1,
        ("Potstill: few undecided", "undecided"): 1,
        ("Potstill: untrained rejected", "rejected"): 1,
        ("Potstill: tickets released", "released"): 1,
        ("Potstill: poor has used 80 % or more of its budget", "budget"): 1,
        ("Potstill: poor failed", "failed"): 1,
        ("Potstill: killed crashed", "crashed"): 1,
    }


def _end(server: RunningServer, recipe: dict[str, Any]) -> str:
    return _wait_for_end(server, _start(server, recipe))


def _start(server: RunningServer, recipe: dict[str, Any]) -> str:
    query = {"flows": {"name": {"any_": ["distill-student"]}}, "deployments": {"name": {"any_": ["demo"]}}}
    [deployment] = server.find("deployments", **query)
    return server.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"recipe": recipe}})["id"]


def _wait_for_end(server: RunningServer, run: str) -> str:
    ends = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
    wait_for(lambda: server.state(run)["type"] in ends, RUN_SECONDS)
    return server.state(run)["name"]


def _process_of(run: str) -> int:
    """The run's own process: the worker gives it the run's id."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT__FLOW_RUN_ID") == run and "prefect.engine" in " ".join(process.cmdline()):
                return process.pid
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    pytest.fail(f"no process of run {run}")


def _poor(recipe: dict[str, Any]) -> dict[str, Any]:
    return recipe | {"name": "poor", "budget": {"run_usd": BUDGET_USD}}


def _without_share(subject: str) -> str:
    """It tells the share of the budget at the moment of looking."""
    found = re.search(r"used (\d+)%", subject)
    return subject if found is None or int(found[1]) < 80 else subject.replace(found[0], "used 80 % or more")


def _alert(body: str) -> str:
    [found] = re.findall(r"docs/operations\.md#(\w+)", body)
    return found
