"""What fails around a run: its server as it trains, its disk, somebody who cancels a training that has no run of its own."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.drills.operations.conftest import BY_HAND, Scene, seconds_until
from tests.small_disk import small_disk

pytestmark = pytest.mark.drill

AWAY_SECONDS = 40
"""More than a heartbeat, less than what makes a zombie."""
CANCELLED_SECONDS = 45
HEARS_SECONDS = 60
"""A worker that could not reach the server pauses longer, up to as long as the server was away."""
IN_FLIGHT = 16
"""A recipe's concurrency, where it does not say."""


@pytest.fixture(scope="module")
def scene(stage: Callable[..., AbstractContextManager[Scene]]) -> Iterator[Scene]:
    with stage() as scene:
        yield scene


def test_a_training_that_runs_inline_is_stopped_by_who_cancels_its_run(scene: Scene) -> None:
    line = scene.line
    run = line.start(BY_HAND, scene.recipe("inline", training={"epochs": 400, "seed": 11}))
    scene.await_checkpoint()
    trainer = scene.trainer_of(run)
    asked = time.monotonic()
    line.cancel(run)
    assert line.wait_for_end(run, 60)["type"] == "CANCELLED"
    seconds_until(lambda: not trainer.is_running(), CANCELLED_SECONDS)
    stopped = time.monotonic() - asked
    assert stopped < CANCELLED_SECONDS
    assert list((line.home / "runs" / "train").glob("*/checkpoints/checkpoint-*")), "it saved where it was"
    print(f"\ninline training cancelled: gone after {stopped:.1f} s")


def test_a_training_goes_on_while_its_server_is_dead_and_is_taken_when_it_is_back(scene: Scene) -> None:
    line = scene.line
    recipe = scene.recipe("outlasting", training={"epochs": 120, "seed": 12}, compute={"train": "pool"})
    run, child, trainer = scene.start_training(recipe)
    before = scene.points()
    line.restart_server(AWAY_SECONDS)
    meanwhile = scene.points() - before
    assert meanwhile > 0, "it trains without a server"
    assert line.wait_for_end(child)["type"] == "COMPLETED"
    ended = line.wait_for_end(run)
    assert ended["name"] == "Completed", ended["message"]
    children = {(child["name"], child["state_type"]) for child in line.children(run)}
    made = ("sft", "base answers", "candidate answers")
    assert children == {(f"outlasting {what}", "COMPLETED") for what in made}
    assert len(line.children(run)) == len(made), "each once"
    assert not trainer.is_running()
    assert scene.champion("outlasting") is not None
    print(f"\nserver killed and away for {AWAY_SECONDS} s: {meanwhile} lines of progress meanwhile, released")


def test_a_run_is_cancelled_by_a_worker_that_had_lost_its_server(scene: Scene) -> None:
    line = scene.line
    recipe = scene.recipe("cancelled-later", training={"epochs": 400, "seed": 13}, compute={"train": "pool"})
    run, child, trainer = scene.start_training(recipe)
    line.restart_server(AWAY_SECONDS)
    asked = time.monotonic()
    line.cancel(run)
    assert line.wait_for_end(run, HEARS_SECONDS + CANCELLED_SECONDS)["type"] == "CANCELLED"
    assert line.wait_for_end(child, HEARS_SECONDS + CANCELLED_SECONDS)["type"] == "CANCELLED"
    seconds_until(lambda: not trainer.is_running(), CANCELLED_SECONDS)
    print(f"\ncancelled after an outage of {AWAY_SECONDS} s: training gone after {time.monotonic() - asked:.1f} s")


def test_a_deployed_run_on_a_full_disk_fails_with_the_reason_and_goes_on_with_more_room(scene: Scene) -> None:
    line, before = scene.line, scene.requests()
    recipe = scene.recipe("filling", teacher={"max_tokens": 21})
    with small_disk(line.home, mebibytes=2) as disk:
        full = line.run(BY_HAND, recipe, seconds=500)
        assert full["type"] == "FAILED"
        assert any(word in full["message"] for word in ("disk is full", "No space left")), full["message"]
        disk.grow(400)
        again = line.run(BY_HAND, recipe)
        assert again["name"] == "Completed", again["message"]
        assert scene.champion("filling") is not None
    requests = scene.requests() - before
    assert requests <= 400 + IN_FLIGHT, "asked again is at most what was in flight"
    print(f"\nfull disk: {full['message']!r}; with room {requests} requests in all for 400 prompts")
