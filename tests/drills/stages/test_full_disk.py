"""A disk that fills up in the middle of a run: it says so, and the same run goes on once there is room."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.small_disk import SmallDisk, small_disk

pytestmark = pytest.mark.drill

ROOT = Path(__file__).parents[3]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", mebibytes=2) as disk:
        yield disk


def test_a_run_on_a_full_disk_says_so_and_goes_on_with_more_room(
    disk: SmallDisk,
    tmp_path: Path,
    write_tickets: Callable[..., Any],
    replay_teacher: Callable[..., Any],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> None:
    tickets = write_tickets(tmp_path / "log", 400)
    with replay_teacher(tickets.answers) as teacher:
        path = tmp_path / "tickets.yaml"
        path.write_text(yaml.safe_dump(tiny_recipe(tickets.log, teacher)))
        env = os.environ | {"POTSTILL_HOME": str(disk.path / "home"), "PREFECT_HOME": str(tmp_path / "prefect")}
        command = [sys.executable, "-m", "potstill.cli", "run", str(path), "--json"]
        full = subprocess.run(command, env=env, cwd=ROOT, check=False, capture_output=True, text=True)
        said = [line for line in full.stderr.splitlines() if "full" in line or "space" in line]
        print(f"\nfull: exit {full.returncode}", *said, sep="\n")
        assert full.returncode == 1
        assert [line for line in said if line.startswith("error: ")]

        disk.grow(400)
        again = subprocess.run(command, env=env, cwd=ROOT, check=False, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr[-1000:]
        assert json.loads(again.stdout.splitlines()[-1])["verdict"] == "passed"
        requests = httpx.get(f"{teacher}/replay/stats").json()["requests"]
        print(f"with room: {requests} requests in all for 400 prompts")
        assert requests <= 400 + 16, "asked again is at most what was in flight"
