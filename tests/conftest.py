"""What tests of several stages share: a tiny base model, a log of support tickets, and a teacher that replays them."""

import gc
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from hypothesis import settings

from potstill.object_store import ObjectStore, open_remote
from tests.fake_teacher import FakeTeacher
from tests.postgres import PostgresServer, find_server, is_required, running_server
from tests.s3_server import S3Server, running_s3
from tests.tiny_student import build_base

KEYWORDS = {
    "billing": ("refund",),
    "technical": ("crash",),
}
FILLERS = ("the", "my", "please", "help", "with", "is", "and", "cannot", "why")

settings.register_profile("tests", deadline=None)  # a stall of a busy machine is no fault of an example
settings.load_profile("tests")


class Tickets(NamedTuple):
    """A request log whose label depends on one word of the prompt, and the recorded answers to it."""

    log: Path
    answers: Path


def pytest_collection_finish() -> None:
    """What is imported by now stays: looking for garbage in it took an eighth of the time of the unit tier."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [*FILLERS, *(word for group in KEYWORDS.values() for word in group), *KEYWORDS]
    return build_base(tmp_path_factory.mktemp("base"), words * 20, hidden=128)


@pytest.fixture(scope="session")
def write_tickets() -> Callable[..., Tickets]:
    """`write_tickets(directory, count, first=0)` writes a log of that many prompts and the answers."""
    return _write_tickets


def _write_tickets(directory: Path, count: int, first: int = 0) -> Tickets:
    directory.mkdir(parents=True, exist_ok=True)
    tickets = Tickets(directory / "requests.jsonl", directory / "answers.jsonl")
    with tickets.log.open("w") as log, tickets.answers.open("w") as answers:
        for number in range(first, first + count):
            rng = random.Random(number)
            label = rng.choice(sorted(KEYWORDS))
            words = rng.sample(FILLERS, 4)
            words.insert(rng.randrange(5), rng.choice(KEYWORDS[label]))
            name = chr(ord("a") + number // 26) + chr(ord("a") + number % 26)
            messages = [{"role": "user", "content": " ".join([*words, name])}]
            request = {"model": "frontier", "messages": messages}
            log.write(json.dumps({"timestamp": number, "workload_id": "tickets", "request": request}) + "\n")
            answers.write(json.dumps({"messages": messages, "completion": label}) + "\n")
    return tickets


@pytest.fixture(scope="session")
def replay_teacher() -> Callable[..., AbstractContextManager[str]]:
    """`replay_teacher(answers)` runs the replay teacher in a process of its own and gives its URL."""
    return _replay_teacher


@contextmanager
def _replay_teacher(answers: Path, latency_ms: float = 1) -> Iterator[str]:
    command = ["-m", "potstill.teacher.replay", str(answers), "--port", "0", "--latency-ms", str(latency_ms)]
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`set_clock(seconds)` has the system say what it says after somebody has put its clock forward by so much."""

    def set_clock(seconds: float) -> None:
        boot_time, now = psutil.boot_time(), time.time
        monkeypatch.setattr("psutil._psplatform.boot_time", lambda: boot_time + seconds)
        monkeypatch.setattr("time.time", lambda: now() + seconds)

    return set_clock


@pytest.fixture
def teacher() -> Iterator[FakeTeacher]:
    with FakeTeacher() as teacher:
        yield teacher


@pytest.fixture(scope="session")
def tiny_recipe(tiny_base: Path) -> Callable[..., dict[str, Any]]:
    """`tiny_recipe(log, teacher_url)` is a recipe, as YAML would give it, that a CPU finishes in seconds."""

    def make(log: Path, teacher_url: str, **sections: dict[str, Any]) -> dict[str, Any]:
        recipe: dict[str, Any] = {
            "name": "tickets",
            "task": {"kind": "classification", "labels": sorted(KEYWORDS)},
            "curation": {
                "inputs": [str(log)],
                "workload": "tickets",
                "test_fraction": 0.3,
                "validation_fraction": 0.05,
            },
            "teacher": {
                "provider": "openai_compatible",
                "model": "replay",
                "base_url": teacher_url,
                "price": {"input_per_million": 1, "output_per_million": 2},
                "max_tokens": 16,
                "batch_size": 128,
            },
            "student": {"base": str(tiny_base)},
            "training": {
                "epochs": 12,
                "learning_rate": 5e-3,
                "max_length": 128,
                "lora_rank": 16,
                "lora_alpha": 32,
                "checkpoint_steps": 5,
            },
            "evaluation": {"max_tokens": 8, "batch_size": 50},
            "gate": {"retention_floor": 0.9},
        }
        for name, values in sections.items():
            recipe[name] = {**recipe[name], **values}
        return recipe

    return make


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    binaries = find_server()
    if binaries is None:
        missing = "PostgreSQL is not installed: apt install postgresql"
        pytest.fail(missing) if is_required("postgresql") else pytest.skip(missing)
    with running_server(binaries) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.flow)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a new database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgres").new_database()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with running_s3() as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """A new place in a bucket, which this process and those that it starts use as their store."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    remote = open_remote()
    assert remote is not None
    return remote


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.flow)])
def store_kind(request: pytest.FixtureRequest) -> str:
    """Once with everything below a home, once with the store in a bucket."""
    if request.param == "s3":
        request.getfixturevalue("bucket")
    return request.param
