"""Kill -9 in every stage, then the same command: it ends as if nothing had been, and pays, trains and answers once."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.artifacts import ArtifactStore
from potstill.evaluation.generate import GenerationSpec, read_answers, select_prompts
from potstill.evaluation.report import read_arm_answers, read_arms
from potstill.promotions import Aliases, came_true, promotions
from potstill.release import aliases, releases
from potstill.run_record import find_record
from potstill.training.launch import read_status
from potstill.training.spec import Point, read_points
from tests.line import Line, Outcome

pytestmark = pytest.mark.drill

PROMPTS = 400
CHECKPOINT_STEPS = 5
STEPS_AN_EPOCH = 17
"""A run that resumes within a later epoch must draw the order of that epoch again."""
STAGE_SECONDS = 300

First = subprocess.Popen[bytes]
Story = Iterator[str]
"""A stage's drill: yields when the stage is at work, then what the kill left, then what the second run did about it."""


@pytest.fixture(scope="module")
def open_line(
    tmp_path_factory: pytest.TempPathFactory,
    write_tickets: Callable[..., Any],
    replay_teacher: Callable[..., Any],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> Callable[[], AbstractContextManager[Line]]:
    """`open_line()` gives a `Line` with new state; Prefect's home is one for all of them, as a user's is."""
    prefect = tmp_path_factory.mktemp("prefect")

    @contextmanager
    def opened() -> Iterator[Line]:
        root = tmp_path_factory.mktemp("line")
        tickets = write_tickets(root / "input", PROMPTS)
        with replay_teacher(tickets.answers, latency_ms=150) as teacher:
            recipe = tiny_recipe(
                tickets.log,
                teacher,
                training={"checkpoint_steps": CHECKPOINT_STEPS},
                evaluation={"batch_size": 1},  # slow enough to be met in the middle
            )
            (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
            line = Line(root, teacher, prefect)
            try:
                yield line
            finally:
                for process in line.processes():
                    process.kill()

    return opened


@pytest.fixture(scope="module")
def uninterrupted(open_line: Callable[[], AbstractContextManager[Line]]) -> Iterator[Outcome]:
    with open_line() as line:
        outcome = line.outcome(line.finish())
        assert line.requests() == PROMPTS
        line.wait_for_the_end()
        yield outcome


@pytest.fixture(scope="module")
def figures() -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    print("\n| stage | killed | when | the second run | all gone after | second run took |")
    print("|---|---|---|---|--:|--:|", *rows, sep="\n")


def teach(line: Line, first: First) -> Story:
    def in_the_middle() -> bool:
        return line.requests() >= 150 and any("in_flight" in states for states in line.attempts().values())

    wait_for(in_the_middle, first)
    yield ""
    left = line.attempts()
    in_flight = [key for key, states in left.items() if states == ["in_flight"]]
    assert in_flight
    yield f"{len(left) - len(in_flight)} of {PROMPTS} answered, {len(in_flight)} in flight"
    assert all(line.attempts()[key] == ["unknown", "answered"] for key in in_flight)
    yield f"asked {line.requests() - PROMPTS} again"


def train(line: Line, first: First) -> Story:
    def checkpoints() -> list[int]:
        found = line.home.glob("runs/train/*/checkpoints/checkpoint-*/is-whole")
        return sorted(int(path.parent.name.rpartition("-")[2]) for path in found)

    def curve() -> list[Point]:
        return [point for path in line.home.glob("runs/train/*/progress.jsonl") for point in read_points(path)]

    wait_for(lambda: max(checkpoints(), default=0) > STEPS_AN_EPOCH and curve()[-1].step > checkpoints()[-1], first)
    yield ""
    saved, reached = checkpoints()[-1], curve()[-1]
    assert saved <= reached.step < reached.total_steps
    yield f"step {reached.step} of {reached.total_steps}"
    student = find_record(line.home, "tickets").student
    assert read_status(ArtifactStore(line.home).path(student)).resumed_from_step == saved
    assert reached.step - saved <= CHECKPOINT_STEPS
    yield f"went on from step {saved}"


def evaluate(line: Line, first: First) -> Story:
    def candidates() -> list[GenerationSpec]:
        found = sorted(line.home.glob("runs/generate/*/spec.json"))
        specs = [GenerationSpec.model_validate_json(path.read_bytes()) for path in found]
        return [spec for spec in specs if spec.adapter is not None]

    wait_for(lambda: any(len(read_answers(Path(spec.run_dir))) >= 20 for spec in candidates()), first)
    yield ""
    [spec] = candidates()
    given, asked = read_answers(Path(spec.run_dir)), len(select_prompts(spec))
    assert 20 <= len(given) < asked
    yield f"{len(given)} of {asked} answered by the candidate"
    store = ArtifactStore(line.home)
    arms = read_arms(store.path(find_record(line.home, "tickets").evaluation))
    kept = read_arm_answers(store.path(arms["candidate"]))
    assert [kept[row.prompt_id] for row in given] == given, "its seconds tell an answer from the same one made again"
    yield f"answered the other {asked - len(given)}"


def release_before_its_log(line: Line, first: First) -> Story:
    """A pipe in the place of the log of moves stops a release whose version is written, and nothing points to it."""
    line.releases.mkdir(parents=True)
    trap = line.releases / "promotions.jsonl"
    os.mkfifo(trap)
    opened: list[int] = []

    def is_being_read() -> bool:
        try:
            opened.append(os.open(trap, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody reads it yet
            return False
        return True

    wait_for(is_being_read, first)
    yield ""
    os.close(opened[0])
    trap.unlink()
    yield from release_completes(line, "version written, move not logged")


def release_before_its_alias(line: Line, first: First) -> Story:
    """A pipe in the place of the new aliases stops a release whose move is logged, and not made."""
    line.releases.mkdir(parents=True)
    trap = line.releases / f".aliases.json.{first.pid}.tmp"
    os.mkfifo(trap)
    wait_for(lambda: promotions(line.releases) != [], first)
    yield ""
    trap.unlink()
    yield from release_completes(line, "move logged, alias not moved")


def release_completes(line: Line, where: str) -> Story:
    before = releases(line.home, "tickets")
    assert len(before) == 1
    assert aliases(line.home, "tickets") == Aliases()
    yield where
    assert releases(line.home, "tickets") == before, "the version that the killed run wrote, and its date"
    yield "moved the alias"


def kill_group(first: First) -> None:
    os.killpg(first.pid, signal.SIGKILL)


def kill_parent(first: First) -> None:
    first.kill()


DRILLS = [
    *product((teach, train, evaluate), (kill_group, kill_parent)),
    *((release_before_its_log, kill_group), (release_before_its_alias, kill_parent)),
]


@pytest.mark.parametrize(("stage", "kill"), DRILLS, ids=lambda value: value.__name__)
def test_the_same_command_completes_what_was_killed(
    stage: Callable[[Line, First], Story],
    kill: Callable[[First], None],
    open_line: Callable[[], AbstractContextManager[Line]],
    uninterrupted: Outcome,
    figures: list[str],
) -> None:
    with open_line() as line:
        first = line.start()
        story = stage(line, first)
        next(story)
        kill(first)
        assert first.wait() == -signal.SIGKILL
        gone_seconds = line.wait_for_the_end()
        when = next(story)
        paid, made = line.attempts(), line.artefacts()

        began = time.monotonic()
        summary = line.finish()
        second_seconds = time.monotonic() - began
        line.wait_for_the_end()
        then = next(story)

        in_flight = sum(states[-1] == "in_flight" for states in paid.values())
        now = line.attempts()
        assert 0 <= line.requests() - PROMPTS <= in_flight
        assert len(now) == PROMPTS
        assert {states[-1] for states in now.values()} == {"answered"}
        assert sum(map(len, now.values())) == PROMPTS + in_flight
        assert (Decimal(summary["unknown_usd"]) > 0) == (in_flight > 0)
        assert {path: line.artefacts()[path] for path in made} == made, "what was whole is not made again"
        again = line.outcome(summary)
        for mine, whole in zip(again.curve, uninterrupted.curve, strict=True):
            assert mine == pytest.approx(whole, abs=1e-4)
        with_unknown_usd = uninterrupted.spent_usd * (PROMPTS + in_flight) / PROMPTS
        assert again.spent_usd == with_unknown_usd, "what was in flight counts as a mean one"
        assert again._replace(curve=[]) == uninterrupted._replace(curve=[], spent_usd=again.spent_usd)
        log = promotions(line.releases)
        assert [move.to_version for move in log] == [again.aliases.champion]
        assert came_true(log, again.aliases.champion) == log
        assert line.unfinished() == []
        names = f"{stage.__name__.partition('_')[0]} | {kill.__name__.removeprefix('kill_')}"
        figures.append(f"| {names} | {when} | {then} | {gone_seconds:.1f} s | {second_seconds:.0f} s |")


def wait_for(happened: Callable[[], bool], first: First) -> None:
    deadline = time.monotonic() + STAGE_SECONDS
    while not happened():
        assert first.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, "the stage was not reached"
        time.sleep(0.01)
