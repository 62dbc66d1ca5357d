"""The same search for the key after batches: handed in, refused, left at the provider, shown, collected, and full of echoes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect.settings import (
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    temporary_settings,
)

from potstill.errors import NotAuthorisedError
from potstill.llm.echoes import MASK
from potstill.recipe import Recipe
from tests.batch_teacher import BatchTeacher, error, refuse
from tests.canary import Scanner
from tests.flows.test_batch_mode import completions_of, recipe, teach_only, thirty_prompts
from tests.flows.test_canary_key import KEY, ROOT

pytestmark = pytest.mark.flow

RECORDED_SECONDS = 30.0
"""So long may Prefect's server take to write what was logged."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where all is written but Prefect's database."""
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CANARY_KEY", KEY)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        yield tmp_path


@pytest.fixture
def teacher() -> Iterator[BatchTeacher]:
    """It demands the key, and echoes it in whatever goes wrong."""

    def answer(mark: str) -> str:
        if mark == "#0029":
            teacher.outcomes.pop("#0005", None)
        return f"Your key is {KEY}" if mark == "#0003" else "{}"

    with BatchTeacher() as teacher:
        teacher.key = KEY
        teacher.polls = 1
        teacher.answer = answer
        teacher.outcomes = {
            "#0005": error(500, "api_error", f"upstream refused {KEY}:"),
            "#0009": error(400, "invalid_request_error", f"the gateway dropped this prompt of {KEY}:"),
        }
        yield teacher


def show_batches(root: Path, number: int) -> int:
    """The command, with the tracebacks of its errors; what it prints is kept below `root`."""
    command = [sys.executable, "-m", "potstill.cli", "batches", str(root / "recipe.yaml"), "--json"]
    with (root / f"out-{number}").open("wb") as out, (root / f"err-{number}").open("wb") as err:
        env = os.environ | {"POTSTILL_DEBUG": "1"}
        return subprocess.run(command, env=env, cwd=ROOT, check=False, stdout=out, stderr=err, timeout=60).returncode


def prefect_database() -> Path:
    return Path(str(PREFECT_SERVER_DATABASE_CONNECTION_URL.value()).partition("///")[2])


def wait_until_recorded(database: Path, words: str) -> None:
    """Prefect sends its logs from a thread of its own."""
    deadline = time.monotonic() + RECORDED_SECONDS
    while not any(words.encode() in path.read_bytes() for path in database.parent.glob(f"{database.name}*")):
        assert time.monotonic() < deadline, f"{words!r} never reached {database}"
        time.sleep(0.1)


@pytest.mark.parametrize("provider", ["openai_compatible", "anthropic"])
def test_no_byte_that_batches_leave_behind_holds_the_key(
    root: Path,
    teacher: BatchTeacher,
    provider: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: Recipe = recipe(teacher, provider=provider, api_key_env="CANARY_KEY", stragglers_online=False)
    (root / "recipe.yaml").write_text(yaml.safe_dump(asked.model_dump(mode="json")))
    prompts = thirty_prompts()
    teacher.fail_next("create", refuse(401, said=f"Incorrect API key provided: {KEY}"))
    with pytest.raises(NotAuthorisedError, match="Incorrect API key provided: \\[api key\\]"):
        teach_only(asked, prompts)
    teacher.fail_next("state", refuse(403, said=f"no access to batches of {provider} with {KEY}"))
    with pytest.raises(NotAuthorisedError):
        teach_only(asked, prompts)
    teacher.fail_next("state", refuse(403, said=f"no access to batches of {provider} with {KEY}"))
    assert show_batches(root, 1) == 6
    assert show_batches(root, 2) == 0
    teacher.rejections = [[{"code": "invalid_request", "message": f"line 1 is not for {KEY}", "line": 1}]]
    rows = completions_of(teach_only(asked, prompts))

    printed = capfd.readouterr()
    (root / "printed").write_text(printed.out + printed.err + caplog.text)
    database = prefect_database()
    wait_until_recorded(database, f"no access to batches of {provider} with {MASK}")
    scanner = Scanner(KEY)
    assert scanner.scan(root, database.parent) == []
    assert {row.prompt_id[-5:-1] for row in rows if MASK in f"{row.completion} {row.quarantine}"} >= {"0003", "0009"}
    assert scanner.files > 10
    assert scanner.opened >= {"database", "Parquet", "JSON"}
    echoed = {path.name for path in root.rglob("*") if path.is_file() and MASK.encode() in path.read_bytes()}
    assert echoed & {"ledger.db", "ledger.db-wal"}
    assert echoed >= {"err-1", "printed", "completions.jsonl"}, "the teacher did echo it"
    assert list((root / "results").rglob("*")), "Prefect's results lay where they were looked for"
