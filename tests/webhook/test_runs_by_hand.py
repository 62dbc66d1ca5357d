"""What a run by hand that cannot begin does to the prompts that wait for the webhook's next run: nothing."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.inbox import Inbox, count_landed

pytestmark = pytest.mark.flow


@pytest.mark.parametrize("command", [("potstill.cli", "run"), ("flows",)], ids=" ".join)
def test_a_run_with_a_missing_key_leaves_them_waiting(
    command: tuple[str, ...],
    tmp_path: Path,
    write_tickets: Callable[..., Any],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> None:
    lines = write_tickets(tmp_path / "log", 20).log.read_bytes().splitlines(keepends=True)
    recipe = tiny_recipe(tmp_path, "http://127.0.0.1:9/v1", curation={"inputs": ["inbox"]})
    recipe["teacher"] |= {"api_key_env": "KEY_THAT_IS_MISSING"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    home = tmp_path / "home"
    home.mkdir()
    with Inbox(home, "tickets") as inbox:
        inbox.land("msg_1", "0" * 64, lines)
    ended = subprocess.run(
        [sys.executable, "-m", *command, "recipe.yaml"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "POTSTILL_"))}
        | {
            "POTSTILL_HOME": str(home),
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "KEY_THAT_IS_MISSING" in ended.stderr
    assert count_landed(home, "tickets") == 20
