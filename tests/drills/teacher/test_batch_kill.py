"""Batch mode on the command line, killed wherever it may be: nothing is paid twice, and the answers come."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch_teacher import BatchTeacher, error

pytestmark = pytest.mark.drill

ROOT = Path(__file__).parents[3]
PROMPTS = 300


@pytest.fixture
def teacher() -> Iterator[BatchTeacher]:
    with BatchTeacher() as teacher:
        teacher.polls = 3
        teacher.runs_by_itself = True
        yield teacher


def start(directory: Path, url: str, provider: str) -> "subprocess.Popen[bytes]":
    arguments = ["teach", directory / "prompts.jsonl", "--out", directory / "out", "--provider", provider]
    arguments += ["--base-url", url, "--model", "fake-1", "--price", "2.5,10", "--json", "--mode", "batch"]
    environment = {**os.environ, "POTSTILL_HOME": str(directory / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "potstill.cli", *map(str, arguments), "--batch-poll-seconds", "0.3"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("provider", ["openai_compatible", "anthropic"])
def test_nothing_is_paid_twice_however_often_it_is_killed(
    teacher: BatchTeacher, tmp_path: Path, provider: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (
        {"id": f"row-{n}", "messages": [{"role": "user", "content": f"Which is #{n:04d}?"}]} for n in range(PROMPTS)
    )
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    failing = {f"#{number:04d}" for number in range(0, PROMPTS, 10)}
    teacher.outcomes = {mark: error(500, "api_error") for mark in failing}
    kills = 0
    for operation, count in (("create", 1), ("state", 2), ("results", 1), ("create", 2), ("state", 8)):
        process = start(tmp_path, teacher.url, provider)
        deadline = time.monotonic() + 30
        while teacher.operations().count(operation) < count and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        if operation == "results":
            teacher.outcomes = {}
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    last = start(tmp_path, teacher.url, provider)
    out, err = last.communicate(timeout=60)
    assert last.returncode == 0, err.decode()
    summary = json.loads(out.splitlines()[-1])
    written = [json.loads(line) for line in (tmp_path / "out" / "completions.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in written] == [f"answer to #{number:04d}" for number in range(PROMPTS)]
    assert teacher.billed_twice() == {}
    tokens = [sum(getattr(one, kind) for one in teacher.billed) for kind in ("input", "output")]
    assert summary["total_cost_usd"] == pytest.approx((tokens[0] * 2.5 + tokens[1] * 10) / 2_000_000, abs=1e-12)
    with capsys.disabled():
        print(f"\n{provider}: {kills} kills, {len(teacher.batches)} batches, {len(teacher.billed)} billed, 0 twice")
