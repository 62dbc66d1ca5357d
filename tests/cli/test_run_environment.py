"""`potstill run` and what it finds around it: a server that is down, files of the user's with the names of ours."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.flow


def test_a_server_that_does_not_answer_is_named_and_a_file_called_tasks_is_let_alone(
    tmp_path: Path, write_tickets: Callable[..., Any], tiny_recipe: Callable[..., dict[str, Any]]
) -> None:
    tickets = write_tickets(tmp_path / "in", 10)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(tickets.log, "http://127.0.0.1:9/v1")))
    for name in ("tasks.py", "flows.py", "datasets.py"):
        (tmp_path / name).write_text("raise RuntimeError('a file of the user was imported')")
    ended = subprocess.run(
        [str(Path(sys.executable).parent / "potstill"), "run", "recipe.yaml"],
        cwd=tmp_path,
        env=os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path / "prefect")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    [said] = ended.stderr.splitlines()
    assert said.startswith("error: PREFECT_API_URL http://127.0.0.1:9/api does not answer")
