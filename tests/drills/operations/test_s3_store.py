"""The store in a bucket: killed on one machine, finished on a second, served on a third, rolled back from the second."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from potstill.artifacts import open_store
from potstill.object_store import ObjectStore
from potstill.promotions import came_true
from potstill.release import aliases
from potstill.run_record import find_record
from potstill.shelves import shelf_at
from potstill.training.launch import read_status
from potstill.training.spec import read_points
from tests.line import Line
from tests.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.drill

PROMPTS = 400
STAGE_SECONDS = 300


class Machines(NamedTuple):
    """Each has a home and a Prefect of its own; they share the bucket, the ledger and the teacher."""

    first: Line
    second: Line
    settings: dict[str, str]
    root: Path


@pytest.fixture
def machines(
    tmp_path: Path,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    write_tickets: Callable[..., Any],
    replay_teacher: Callable[..., Any],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> Iterator[Machines]:
    settings = s3_server.environment() | {"POTSTILL_LEDGER": f"sqlite:///{tmp_path / 'ledger.db'}"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    tickets = write_tickets(tmp_path / "input", PROMPTS)
    with replay_teacher(tickets.answers) as teacher:
        lines = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            lines.append(Line(tmp_path / name, teacher, tmp_path / name / "prefect", settings))
            _write_recipe(lines[-1], tiny_recipe(tickets.log, teacher, training={"checkpoint_steps": 5}))
        try:
            yield Machines(lines[0], lines[1], settings, tmp_path)
        finally:
            for process in (process for line in lines for process in line.processes()):
                process.kill()


def test_another_machine_finishes_what_was_killed_and_a_third_serves_it(machines: Machines) -> None:
    first, second = machines.first, machines.second
    remote = ObjectStore(machines.settings["POTSTILL_STORE"])

    killed = first.start()
    step = _wait_for_training(first, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    first.wait_for_the_end()
    made = _manifests(remote)
    assert {name.split("/")[1] for name in made} >= {"PromptSet", "Completions", "SFTDataset"}
    assert first.requests() == PROMPTS
    assert not remote.names("releases")

    began = time.monotonic()
    summary = second.finish()
    resumed_seconds = time.monotonic() - began
    assert summary["verdict"] == "passed"
    assert second.requests() == PROMPTS, "the ledger knows every answer: nothing is paid twice"
    now = _manifests(remote)
    assert {name: now[name] for name in made} == made, "what the first machine finished is not made again"
    assert not list(second.home.glob("runs/train/*/checkpoints")), "it is done"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POTSTILL_HOME", str(second.home))
        record = find_record(second.home, "tickets")
        status = read_status(open_store().path(record.student))
    assert status.resumed_from_step == 0, "checkpoints stay on the machine that wrote them"
    champion = aliases(second.home, "tickets").champion
    assert champion == summary["release"]

    third = machines.root / "third"
    with _serving(machines, third) as url:
        expected, asked = _golden(second, champion), f"tickets@{champion}"
        assert _ask(url, expected) == (asked, expected["expected"])
        assert not list(third.glob("artifacts/StudentAdapter")), "a gateway needs releases only"

        _write_recipe(first, _with_seed(first, 2))
        began = time.monotonic()
        after = first.finish()
        again_seconds = time.monotonic() - began
        assert after["verdict"] == "passed"
        assert after["release"] not in {None, champion}
        assert first.requests() == PROMPTS
        new_seconds = _until(lambda: _ask(url, expected)[0] == f"tickets@{after['release']}")

        command = [sys.executable, "-m", "potstill.cli", "rollback", "tickets", "--json"]
        environment = os.environ | {"POTSTILL_HOME": str(second.home)}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        assert json.loads(done.stdout)["champion"] == champion
        back_seconds = _until(lambda: _ask(url, expected)[0] == asked)
        assert back_seconds < 1
        assert _ask(url, expected) == (asked, expected["expected"])

    log = shelf_at(third / "releases" / "tickets").state().lines
    assert [(line.what, line.to_version) for line in log] == [
        ("release", champion),
        ("release", after["release"]),
        ("rollback", champion),
    ]
    assert came_true(log, champion) == log
    stored = len(remote.names("artifacts")) + len(remote.names("releases"))
    print(
        f"\nkilled at training step {step} with {len(made)} artefacts in s3://{BUCKET}; finished on the second machine in "
        f"{resumed_seconds:.0f} s, {second.requests()} of {PROMPTS} requests in all; the first machine's next run took "
        f"{again_seconds:.0f} s; the gateway followed the new release after {new_seconds:.2f} s, the rollback after "
        f"{back_seconds:.2f} s; {stored} objects"
    )


def _wait_for_training(line: Line, run: "subprocess.Popen[bytes]") -> int:
    def at_work() -> bool:
        assert run.poll() is None, (line.root / "log").read_text()[-3000:]
        return any(line.home.glob("runs/train/*/checkpoints/checkpoint-*/is-whole"))

    _until(at_work, STAGE_SECONDS)
    [progress] = line.home.glob("runs/train/*/progress.jsonl")
    point = read_points(progress)[-1]
    assert point.step < point.total_steps
    return point.step


def _until(happened: Callable[[], bool], limit_seconds: float = 30) -> float:
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < limit_seconds
        time.sleep(0.02)
    return time.monotonic() - began


def _manifests(remote: ObjectStore) -> dict[str, bytes]:
    """What each finished artefact says of itself, when it was made included."""
    names = [name for name in remote.names("artifacts") if name.endswith("manifest.json")]
    return {name: blob.content for name in names if (blob := remote.read(name)) is not None}


@contextmanager
def _serving(machines: Machines, home: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "potstill.cli", "serve", "--port", "0"]
    environment = os.environ | machines.settings | {"POTSTILL_HOME": str(home)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"serve ended with status {process.wait(10)}"
        yield json.loads(line)["url"]
    finally:
        process.terminate()
        assert process.wait(30) == 0


def _golden(line: Line, champion: str) -> dict[str, Any]:
    [path] = line.home.glob(f"releases/tickets/versions/{champion}/golden.jsonl")
    return json.loads(path.read_text().splitlines()[0])


def _ask(url: str, golden: dict[str, Any]) -> tuple[str, str]:
    body = {"model": "tickets", "messages": golden["messages"]}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    answer.raise_for_status()
    return answer.headers["x-potstill-version"], answer.json()["choices"][0]["message"]["content"]


def _write_recipe(line: Line, recipe: dict[str, Any]) -> None:
    (line.root / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def _with_seed(line: Line, seed: int) -> dict[str, Any]:
    recipe = yaml.safe_load((line.root / "recipe.yaml").read_text())
    return recipe | {"training": recipe["training"] | {"seed": seed}}
