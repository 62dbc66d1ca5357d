"""A whole run with a key that must not be found afterwards: every byte that it wrote is searched, whatever went wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.canary import Scanner
from tests.fake_teacher import RESET, Asked, FakeTeacher, Fault

pytestmark = pytest.mark.flow

ROOT = Path(__file__).parents[2]
KEY = "sk-canary/7f3Qz+teacher_K9==x"
PROMPTS = 300
SAVE_BLOCK = "import sys; from prefect.blocks.system import Secret; Secret(value=sys.stdin.read()).save('teacher-key')"
RUN_SECONDS = 400


class GuardedTeacher:
    """It demands the key, and echoes it in whatever goes wrong."""

    def __init__(self) -> None:
        self.is_key_revoked = False
        self.answered = 0

    def __call__(self, asked: Asked) -> Fault | None:
        sent = asked.headers.get("authorization", "")
        if self.is_key_revoked or sent != f"Bearer {KEY}":
            return _error(401, f"Incorrect API key provided: {sent.removeprefix('Bearer ')}.")
        self.answered += 1
        return FAULTS.get(self.answered) or _label(asked)


def _error(status: int, message: str) -> Fault:
    return Fault(str(status), status, json.dumps({"error": {"message": message}}).encode())


def _label(asked: Asked) -> Fault:
    return _answer("billing" if "refund" in asked.body["messages"][-1]["content"] else "technical")


def _answer(text: str) -> Fault:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 20, "completion_tokens": 2}
    return Fault("answer", 200, json.dumps({"choices": [choice], "usage": usage}).encode(), usage=(20, 2))


FAULTS = {
    5: RESET,
    9: _error(500, f"upstream refused Authorization: Bearer {KEY}"),
    13: _error(400, f"the gateway dropped this prompt of {KEY}"),
    17: _answer(f"Your key is {KEY}"),
    21: Fault("a broken header", 200, b"", (("x-echo\x00", KEY),)),
    25: _error(429, "slow down, " + "x" * 170 + KEY),
}
"""By the number of the request: what is lost, refused, echoed, malformed."""


class Place(NamedTuple):
    """Where a run lives: nothing of it lies outside of `root`."""

    root: Path
    teacher: GuardedTeacher
    env: dict[str, str]

    def run(self, number: int, *, debug: bool) -> int:
        """Run the recipe as a user does; returns the exit code. What it prints is kept below `root`."""
        command = [sys.executable, "-m", "potstill.cli", "run", str(self.root / "recipe.yaml"), "--json"]
        env = self.env | ({"POTSTILL_DEBUG": "1"} if debug else {})
        with (self.root / f"out-{number}").open("wb") as out, (self.root / f"err-{number}").open("wb") as err:
            ended = subprocess.run(command, env=env, cwd=ROOT, check=False, stdout=out, stderr=err, timeout=RUN_SECONDS)
        return ended.returncode

    def said(self, number: int) -> str:
        return (self.root / f"err-{number}").read_text()


@pytest.fixture(params=["a variable", pytest.param("a block", marks=pytest.mark.drill)])
def place(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    write_tickets: Callable[..., Any],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> Iterator[Place]:
    tickets = write_tickets(tmp_path / "log", PROMPTS)
    guard = GuardedTeacher()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "POTSTILL_"))} | {
        "POTSTILL_HOME": str(tmp_path / "potstill"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "TMPDIR": str(tmp_path / "temporary"),
    }
    (tmp_path / "temporary").mkdir()
    if request.param == "a block":
        env["POTSTILL_KEY_HOSTS"] = "block:teacher-key=127.0.0.1"
        source = {"api_key_block": "teacher-key"}
        save = [sys.executable, "-c", SAVE_BLOCK]
        subprocess.run(save, env=env, input=KEY, text=True, check=True, capture_output=True, timeout=RUN_SECONDS)
    else:
        env["CANARY_KEY"] = KEY
        source = {"api_key_env": "CANARY_KEY"}
    with FakeTeacher(guard) as teacher:
        recipe = tiny_recipe(tickets.log, teacher.url, teacher={"concurrency": 4, "batch_size": 64, **source})
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        yield Place(tmp_path, guard, env)


def test_no_byte_that_a_run_writes_holds_the_key(place: Place) -> None:
    place.teacher.is_key_revoked = True
    assert place.run(1, debug=True) == 1
    assert "NotAuthorisedError" in place.said(1), "with its traceback"
    assert place.run(2, debug=False) == 6
    place.teacher.is_key_revoked = False
    assert place.run(3, debug=False) == 0, place.said(3)[-3000:]
    assert place.teacher.answered > PROMPTS
    assert json.loads((place.root / "out-3").read_text().splitlines()[-1])["verdict"] == "passed"

    scanner = Scanner(KEY)
    assert scanner.scan(place.root) == []
    assert scanner.files > 100
    assert scanner.opened >= {"database", "Parquet", "JSON"}
    written = {path.name for path in place.root.rglob("*")}
    assert written >= {"ledger.db", "prefect.db", "report.html", "manifest.json", "completions.parquet", "err-1"}
    assert "Incorrect API key provided: [api key]" in place.said(2)
    echoed = [path for path in place.root.rglob("*") if path.is_file() and b"[api key]" in path.read_bytes()]
    assert {path.name for path in echoed} >= {"ledger.db", "err-2", "prefect.db"}, "the teacher did echo it"
