"""Two processes that share a ledger and ask for the same prompts at once."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tests.cli.test_teach import ROOT, arguments, write_prompts
from tests.fake_teacher import FakeTeacher
from tests.scripted_server import wait_until

pytestmark = pytest.mark.flow

PROMPTS = 40
SECONDS = 120


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.jsonl", PROMPTS)


def start(prompts: Path, ledger_url: str, teacher: FakeTeacher, out: str) -> "subprocess.Popen[str]":
    given = arguments(prompts, teacher.url, "--concurrency", PROMPTS)
    given[given.index("--out") + 1] = str(prompts.parent / out)
    environment = {**os.environ, "POTSTILL_HOME": str(prompts.parent / "home"), "POTSTILL_LEDGER": ledger_url}
    command = [sys.executable, "-m", "potstill.cli", *given]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]", prompts: Path, out: str) -> list[str]:
    """The completions in the order of the prompts."""
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert json.loads(said.splitlines()[-1])["answered"] == PROMPTS
    lines = (prompts.parent / out / "completions.jsonl").read_text().splitlines()
    return [json.loads(line)["completion"] for line in lines]


def right() -> list[str]:
    return [f"answer to #{number:04d}" for number in range(PROMPTS)]


def num_owners(ledger_url: str) -> int:
    """Those that have claimed prompts, or tried to."""
    engine = create_engine(ledger_url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
    with engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM owners")).scalar_one()


def test_each_prompt_is_billed_once_and_both_get_every_answer(prompts: Path, ledger_url: str) -> None:
    with FakeTeacher(latency=0.05) as teacher:
        processes = {out: start(prompts, ledger_url, teacher, out) for out in ("one", "two")}
        found = [finish(process, prompts, out) for out, process in processes.items()]
    assert found == [right(), right()]
    assert sorted(teacher.marks()) == [f"#{number:04d}" for number in range(PROMPTS)]
    assert not (prompts.parent / "home" / "ledger.db").exists(), "the answers stand in the ledger that was named"


def test_the_claims_of_a_killed_process_are_taken_over_within_seconds_by_one_that_runs(
    prompts: Path, ledger_url: str
) -> None:
    killed = threading.Event()

    def answer(mark: str) -> str:
        """All but the first wait for the kill."""
        if mark != "#0000":
            killed.wait(SECONDS)
        return f"answer to {mark}"

    with FakeTeacher(answer=answer) as teacher:
        first = start(prompts, ledger_url, teacher, "one")
        teacher.wait_for(PROMPTS, SECONDS)
        second = start(prompts, ledger_url, teacher, "two")
        wait_until(lambda: num_owners(ledger_url) == 2, lambda: "the second claims nothing", SECONDS)
        time.sleep(0.5)
        assert len(teacher.requests) == PROMPTS, "what another asks is not asked"
        first.kill()
        first.wait()
        killed.set()
        killed_at = time.monotonic()
        assert finish(second, prompts, "two") == right()
        again = teacher.requests[PROMPTS:]
    assert sorted(asked.mark for asked in again) == [f"#{number:04d}" for number in range(1, PROMPTS)]
    assert again[0].started_at - killed_at < 5
    assert again[-1].started_at - again[0].started_at < 5, "all at once"
