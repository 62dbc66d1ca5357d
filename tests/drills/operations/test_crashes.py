"""Crashes: what Prefect makes of them, and that both ways to go on, the same recipe again and a retry, do nothing twice."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from potstill.artifacts import ArtifactStore
from potstill.promotions import promotions
from potstill.run_record import find_record
from potstill.training.launch import read_status
from tests.drills.operations.conftest import BY_HAND, Scene, seconds_until

pytestmark = pytest.mark.drill

REPORT_SECONDS = 15
"""Runner and worker report a crash each, seconds apart; the later report undoes a retry that came between them."""
ZOMBIE_SECONDS = 120
"""Within these, a run whose worker died with it is Crashed, and its slot free."""
TOLD_SECONDS = 30
"""Within these the worker tells of a run whose process has gone."""
CONCURRENCY = 16
"""A recipe's, where it does not say."""
GOING_ON = {"PAUSED", "SCHEDULED", "PENDING", "RUNNING"}


@pytest.fixture(scope="module")
def scene(stage: Callable[..., AbstractContextManager[Scene]]) -> Iterator[Scene]:
    with stage(latency_ms=100) as scene:
        yield scene


def test_a_run_that_crashes_as_it_teaches_is_retried_and_asks_for_what_is_missing(scene: Scene) -> None:
    before = scene.requests()
    run = scene.line.start(BY_HAND, scene.recipe("teaching", teacher={"max_tokens": 21}))
    seconds_until(lambda: scene.requests() - before >= 150)
    _crash(scene, run)
    asked = scene.requests() - before
    assert asked < 400
    ended = _retry(scene, run)
    assert ended["name"] == "Completed", ended["message"]
    again = scene.requests() - before - 400
    assert 0 <= again <= CONCURRENCY, "only what was in flight"
    print(f"\ncrashed after {asked} requests of 400, then retried: {again} asked again")


def test_a_run_that_crashes_as_it_trains_is_retried_and_goes_on_from_its_checkpoint(scene: Scene) -> None:
    training = {"epochs": 30, "seed": 4, "checkpoint_steps": 5}
    run = scene.line.start(BY_HAND, scene.recipe("training", training=training))
    scene.await_checkpoint()
    _crash(scene, run)
    paid = scene.requests()
    ended = _retry(scene, run)
    assert ended["name"] == "Completed", ended["message"]
    assert scene.requests() == paid
    step = _resumed_from(scene, "training")
    assert step > 0
    print(f"\ncrashed as it trained, then retried: went on from step {step}")


def test_a_run_that_crashes_after_its_approval_is_retried_and_asks_nobody_again(scene: Scene) -> None:
    line = scene.line
    run = line.start(BY_HAND, scene.recipe("approved", gate={"approval": "ask"}))
    asking = line.process_of(run)
    line.wait_for_state(run, lambda state: state["type"] == "PAUSED")
    asking.wait(60)
    line.resume(run, {"verdict": "approve", "approver": "Jo", "reason": "good"})
    _crash(scene, run)
    assert scene.champion("approved") is None
    ended = _retry(scene, run)
    assert ended["name"] == "Completed", ended["message"]
    [promotion] = promotions(line.home / "releases" / "approved")
    assert promotion.approval is not None


def test_a_killed_training_is_gone_on_with_and_a_killed_worker_does_not_stop_it(scene: Scene) -> None:
    line = scene.line
    recipe = scene.recipe("killed", training={"epochs": 60, "seed": 2}, compute={"train": "pool"})
    run, child, _ = scene.start_training(recipe)
    line.workers["gpu"].send_signal(signal.SIGKILL)
    line.process_of(child).send_signal(signal.SIGKILL)
    killed = time.monotonic()
    line.start_worker("gpu")
    assert line.wait_for_end(child, 150)["type"] == "CRASHED"
    crashed = time.monotonic() - killed
    assert crashed < ZOMBIE_SECONDS, "by the zombie automation"
    again = line.wait_for_state(run, lambda _: len(line.children(run)) > 1, 60)
    assert again["type"] == "RUNNING"
    second = line.children(run)[1]
    line.wait_for_state(second, lambda state: state["type"] == "RUNNING", 120)
    freed = time.monotonic() - killed
    assert freed < ZOMBIE_SECONDS, "its slot is free"
    line.workers["gpu"].send_signal(signal.SIGKILL)
    assert line.wait_for_end(second)["type"] == "COMPLETED", "what a dead worker left behind goes on"
    line.start_worker("gpu")
    ended = line.wait_for_end(run)
    assert ended["name"] == "Completed", ended["message"]
    print(f"\nworker and child killed: Crashed after {crashed:.0f} s, the next child ran after {freed:.0f} s")


def test_a_killed_training_whose_worker_lives_is_told_at_once_and_gone_on_with(scene: Scene) -> None:
    line = scene.line
    recipe = scene.recipe("shot", training={"epochs": 60, "seed": 6}, compute={"train": "pool"})
    run, child, _ = scene.start_training(recipe)
    scene.await_checkpoint()
    _kill(scene, child)
    killed = time.monotonic()
    assert line.wait_for_end(child, TOLD_SECONDS)["type"] == "CRASHED"
    told = time.monotonic() - killed
    ended = line.wait_for_end(run)
    assert ended["name"] == "Completed", ended["message"]
    step = _resumed_from(scene, "shot")
    assert step > 0
    print(f"\nchild killed, its worker alive: Crashed after {told:.1f} s, the next child went on from step {step}")


def test_a_run_that_dies_with_its_worker_leaves_its_training_to_the_next_run(scene: Scene) -> None:
    line = scene.line
    recipe = scene.recipe("orphaned", training={"epochs": 60, "seed": 5}, compute={"train": "pool"})
    run, child, trainer = scene.start_training(recipe)
    line.workers["cpu"].send_signal(signal.SIGKILL)
    line.process_of(run).send_signal(signal.SIGKILL)
    killed = time.monotonic()
    line.start_worker("cpu")
    following = line.start(BY_HAND, recipe)
    assert line.wait_for_end(run, 150)["type"] == "CRASHED"
    crashed = time.monotonic() - killed
    assert crashed < ZOMBIE_SECONDS, "by the zombie automation"
    line.wait_for_state(following, lambda state: state["type"] == "RUNNING", ZOMBIE_SECONDS - crashed)
    freed = time.monotonic() - killed
    assert line.wait_for_end(child)["type"] == "COMPLETED"
    ended = line.wait_for_end(following)
    assert ended["name"] == "Completed", ended["message"]
    assert not trainer.is_running()
    assert _resumed_from(scene, "orphaned") == 0, "trained once, in one go"
    print(f"\nrun and worker killed: Crashed after {crashed:.0f} s, the next ran after {freed:.0f} s, trained once")


def _crash(scene: Scene, run: dict[str, Any]) -> None:
    """Kill the run's process and whatever it started, as the kernel's memory guard does."""
    _kill(scene, run)
    assert scene.line.wait_for_state(run, lambda state: state["type"] not in GOING_ON)["type"] == "CRASHED"


def _kill(scene: Scene, run: dict[str, Any]) -> None:
    flow = scene.line.process_of(run)
    for process in (flow, *flow.children(recursive=True)):
        process.send_signal(signal.SIGKILL)


def _retry(scene: Scene, run: dict[str, Any]) -> dict[str, Any]:
    time.sleep(REPORT_SECONDS)
    scene.line.server.call("-m", "prefect", "flow-run", "retry", run["id"])
    return scene.line.wait_for_state(run, lambda state: state["type"] in {"COMPLETED", "FAILED", "PAUSED"})


def _resumed_from(scene: Scene, name: str) -> int:
    store = ArtifactStore(scene.line.home)
    return read_status(store.path(find_record(scene.line.home, name).student)).resumed_from_step
