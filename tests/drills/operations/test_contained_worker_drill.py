"""A worker of Prefect's, held as its container holds it, is stopped in the middle of a run."""

import json
import sys
import time
from pathlib import Path

import pytest

from tests.box import eventually
from tests.prefect_server import PREFECT, ROOT, make_pool, prefect_server, running

pytestmark = pytest.mark.drill

DEPLOY = """
import sys
from prefect import flow
source = flow.from_source(sys.argv[1], "tests/deployments/sleepy.py:sleepy")
source.deploy("held", work_pool_name="held", build=False, push=False, print_next_steps=False)
"""


def test_a_run_of_prefects_worker_saves_and_no_other_starts_meanwhile(tmp_path: Path) -> None:
    with prefect_server(tmp_path) as server:
        make_pool(server, "held", 2)
        server.call("-c", DEPLOY, str(ROOT))
        [deployment] = server.find("deployments", deployments={"name": {"any_": ["held"]}})
        logs = [tmp_path / "first", tmp_path / "second"]
        worker = (
            sys.executable,
            "-m",
            "deployments.docker.worker",
            *PREFECT,
            "worker",
            "start",
            "--pool",
            "held",
            "--limit",
            "1",
        )
        with running(worker, server.env, tmp_path / "worker.log") as process:
            for log in logs:
                body = {"parameters": {"path": str(log), "seconds": 300}}
                server.post(f"/deployments/{deployment['id']}/create_flow_run", body)
                eventually(logs[0].exists, 180)
            told = time.monotonic()
            process.terminate()
            assert process.wait(60) == 0, (tmp_path / "worker.log").read_text()[-2000:]
            print(f"\nthe worker ended {time.monotonic() - told:.1f} s after SIGTERM, its run had saved")
        said = [json.loads(line).get("ended") for line in logs[0].read_text().splitlines()]
        assert said == [None, "TerminationSignal", "saved"]
        assert not logs[1].exists()
        states = {run["state_type"] for run in server.find("flow_runs")}
        assert states == {"CRASHED", "SCHEDULED"}, "the server, which is stopped after it, knows"
