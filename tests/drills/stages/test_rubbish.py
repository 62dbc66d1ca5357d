"""Rubbish in every place: a clear message and the right exit code each, never a traceback. By the command that users type."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from potstill.artifacts import ArtifactStore
from potstill.run_record import find_record

pytestmark = pytest.mark.drill

ROOT = Path(__file__).parents[3]
FIVE_OF_100 = 0.07
"""The test fraction with which the keyed hash gives five of the first hundred tickets to the test split."""


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out.splitlines()[-1])

    @property
    def error(self) -> str:
        (said,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return said


class Bench(NamedTuple):
    """A good recipe of 400 tickets, to spoil, and a place to run it."""

    recipe: dict[str, Any]
    log: Path
    place: Path

    def run(self, recipe: dict[str, Any]) -> Ended:
        path = self.place / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        env = os.environ | {
            "PREFECT_HOME": str(self.place / "prefect"),
            "POTSTILL_HOME": str(self.place / "potstill"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        command = [sys.executable, "-m", "potstill.cli", "run", str(path), "--json"]
        started = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stdout + done.stderr
        return Ended(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


@pytest.fixture(scope="module")
def bench(
    tmp_path_factory: pytest.TempPathFactory,
    write_tickets: Callable[..., Any],
    replay_teacher: Callable[..., Any],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> Iterator[Bench]:
    place = tmp_path_factory.mktemp("rubbish")
    tickets = write_tickets(place / "log", 400)
    with replay_teacher(tickets.answers) as teacher:
        yield Bench(tiny_recipe(tickets.log, teacher), tickets.log, place)


def spoil(recipe: dict[str, Any], section: str, **values: Any) -> dict[str, Any]:
    """The recipe with some fields of a section changed; None takes a field out."""
    changed = {**recipe[section], **values}
    return {**recipe, section: {name: value for name, value in changed.items() if value is not None}}


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("training", {"epoch": 3}, "training.epoch: unknown field (value 3); did you mean epochs?"),
        ("task", {"kind": "poetry"}, "task.kind: 'poetry' is not allowed"),
        ("curation", {"inputs": ["gone.jsonl"]}, "input gone.jsonl: no such file"),
        ("teacher", {"price": None}, "no price known for model 'replay'"),
        ("student", {"base": "./gone"}, "student.base ./gone: no such directory"),
    ],
    ids=["misspelt field", "unknown kind", "missing log", "unknown price", "missing base"],
)
def test_a_recipe_that_cannot_work_is_bad_usage(bench: Bench, section: str, values: dict[str, Any], said: str) -> None:
    ended = bench.run(spoil(bench.recipe, section, **values))
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.error
    print(f"\nexit {ended.code} after {ended.seconds:.1f} s: {ended.error}")


def test_an_empty_log_is_bad_data(bench: Bench) -> None:
    log = bench.place / "empty.jsonl"
    log.touch()
    ended = bench.run(spoil(bench.recipe, "curation", inputs=[str(log)]))
    assert (ended.code, ended.out) == (2, "")
    assert "empty.jsonl: no line in it" in ended.error
    print(f"\nexit {ended.code} after {ended.seconds:.1f} s: {ended.error}")


def test_ten_percent_of_broken_lines_stop_nothing_and_are_put_aside(bench: Bench) -> None:
    log = bench.place / "broken.jsonl"
    lines = bench.log.read_text().splitlines()
    log.write_text("".join(f"{line}\n" if n % 10 else f"{line[: len(line) // 2]}\n" for n, line in enumerate(lines)))
    ended = bench.run(spoil(bench.recipe, "curation", inputs=[str(log)], max_bad_fraction=0.1))
    assert (ended.code, ended.json["verdict"]) == (0, "passed")
    prompts = ArtifactStore(bench.place / "potstill").path(find_record(bench.place / "potstill", "tickets").prompts)
    quarantine = (prompts / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in quarantine] == list(range(1, 401, 10))
    print(f"\nexit 0 after {ended.seconds:.1f} s: {ended.json['headline']}")


def test_a_test_split_of_five_prompts_is_undecided(bench: Bench) -> None:
    log = bench.place / "few.jsonl"
    log.write_text("".join(f"{line}\n" for line in bench.log.read_text().splitlines()[:100]))
    ended = bench.run({**spoil(bench.recipe, "curation", inputs=[str(log)], test_fraction=FIVE_OF_100), "name": "few"})
    assert ended.json["arms"]["teacher"]["n"] == 5
    assert (ended.code, ended.json["verdict"], ended.json["release"]) == (4, "undecided", None)
    assert not (bench.place / "potstill" / "releases" / "few").exists()
    print(f"\nexit 4 after {ended.seconds:.1f} s: {ended.json['headline']}")
