"""Nights, approvals, the GPU pool and what kills them: real runs of the deployments of prefect.yaml by real workers."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import yaml
from standardwebhooks import Webhook

from potstill.promotions import promotions
from tests.drills.operations.conftest import BY_HAND, NIGHTLY, Scene, seconds_until
from tests.line_on_server import Line
from tests.ports import free_port
from tests.prefect_server import running, wait_for

pytestmark = pytest.mark.drill

BEGINNING = {"Scheduled", "Late", "Submitting", "Pending"}
SECRET = "whsec_" + "A" * 32


@pytest.fixture(scope="module")
def scene(stage: Callable[..., AbstractContextManager[Scene]]) -> Iterator[Scene]:
    with stage() as scene:
        yield scene


def test_nights_are_skipped_then_real_then_incremental_and_missed_ones_are_made_up_for_once(scene: Scene) -> None:
    line, before = scene.line, scene.requests()
    given = {
        "curation": {"inputs": ["inbox"]},
        "inbox": {"min_new_prompts": 50},
        "teacher": {"max_tokens": 18},
        "gate": {"retention_floor": 0.8, "champion_margin": 0.2},  # 130 test prompts shall suffice for both nights
    }
    recipe = scene.recipe("nights", **given)
    empty = line.run(NIGHTLY, recipe)
    assert (empty["name"], empty["message"][:26]) == ("Skipped", "0 new prompts of 0 and no ")

    scene.land("nights", 0, 400)
    first = line.run(NIGHTLY, recipe)
    assert first["name"] == "Completed", first["message"]
    champion = scene.champion("nights")
    assert (scene.requests() - before, champion is not None) == (400, True)

    scene.land("nights", 400, 430)
    few = line.run(NIGHTLY, recipe)
    assert (few["name"], few["message"].split(" since")[0]) == ("Skipped", "30 new prompts of 430")

    scene.land("nights", 430, 470)
    run = line.start(NIGHTLY, recipe)
    second = line.wait_for_end(run)
    assert second["name"] == "Completed", second["message"]
    assert scene.requests() - before == 470, "only what is new is paid for"
    arms = {row["arm"] for row in json.loads(line.reports(run)["evaluation"])}
    assert arms == {"teacher", "base", "candidate", "champion"}, "the champion answers too"
    assert scene.champion("nights") not in {None, champion}, "and is followed by tonight's student"

    nights_ago = [datetime.now(UTC) - timedelta(days=days) for days in (3, 2, 1)]
    missed = [
        line.start(NIGHTLY, recipe, state={"type": "SCHEDULED", "state_details": {"scheduled_time": str(night)}})
        for night in nights_ago
    ]
    assert [line.wait_for_end(run)["name"] for run in missed] == ["Skipped"] * 3
    assert scene.requests() - before == 470


def test_a_night_that_overlaps_the_next_is_waited_for_and_leaves_it_nothing_to_do(scene: Scene) -> None:
    line, before = scene.line, scene.requests()
    sections = {"curation": {"inputs": ["inbox"]}, "teacher": {"max_tokens": 19}}
    recipe = scene.recipe("overlapping", **sections)
    scene.land("overlapping", 0, 400)
    first, second = line.start(NIGHTLY, recipe), line.start(NIGHTLY, recipe)
    waiting = {
        line.wait_for_state(run, lambda state: state["name"] not in BEGINNING)["name"] for run in (first, second)
    }
    assert waiting == {"Running", "AwaitingConcurrencySlot"}
    ended = [line.wait_for_end(run)["name"] for run in (first, second)]
    assert sorted(ended) == ["Completed", "Skipped"]
    assert scene.requests() - before == 400


def test_a_student_waits_for_approval_with_no_process_and_is_released_with_who_and_why(scene: Scene) -> None:
    line = scene.line
    own = line.place / "approved.jsonl"
    own.write_bytes(b"".join(scene.log[:400]))
    recipe = scene.recipe(
        "approved", curation={"inputs": [str(own)]}, gate={"approval": "ask"}, compute={"train": "pool"}
    )
    run = line.start(BY_HAND, recipe)
    line.wait_for_state(run, lambda state: state["type"] == "PAUSED")
    assert [child["state_name"] for child in line.children(run)] == ["Completed"] * len(line.children(run))
    assert "Passed" in line.reports(run)["summary"]
    assert scene.champion("approved") is None
    paid = scene.requests()
    with own.open("ab") as log:
        log.writelines(scene.log[400:450])
    line.resume(run, {"verdict": "maybe", "approver": "Jo", "reason": "hm"}, status="REJECT")
    assert line.server.state(run["id"])["type"] == "PAUSED"
    line.resume(run, {"verdict": "approve", "approver": "Jo Bloggs", "reason": "read 20 answers"})
    ended = line.wait_for_state(run, lambda state: state["type"] in {"COMPLETED", "FAILED", "CRASHED"})
    assert ended["name"] == "Completed", ended["message"]
    assert scene.requests() == paid, "it went on with the prompts that were approved"
    [promotion] = promotions(line.home / "releases" / "approved")
    assert promotion.approval is not None
    assert (promotion.approval.approver, promotion.approval.reason) == ("Jo Bloggs", "read 20 answers")


def test_a_student_that_is_rejected_or_forgotten_is_not_released(scene: Scene) -> None:
    line = scene.line
    run = line.start(BY_HAND, scene.recipe("refused", gate={"approval": "ask"}))
    line.wait_for_state(run, lambda state: state["type"] == "PAUSED")
    line.resume(run, {"verdict": "reject", "approver": "Jo", "reason": "not this week"})
    ended = line.wait_for_state(run, lambda state: state["type"] in {"COMPLETED", "FAILED", "CRASHED"})
    assert ended["name"] == "NotApproved", ended["message"]
    assert "Jo said no (not this week)" in ended["message"]

    run = line.start(BY_HAND, scene.recipe("forgotten", gate={"approval": "ask", "approval_hours": 0.002}))
    line.wait_for_state(run, lambda state: state["type"] == "PAUSED")
    ended = line.wait_for_state(run, lambda state: state["type"] in {"COMPLETED", "FAILED", "CRASHED"})
    assert ended["name"] == "Failed"
    assert "never resumed" in ended["message"]
    assert [scene.champion(name) for name in ("refused", "forgotten")] == [None, None]

    again = line.start(NIGHTLY, scene.recipe("forgotten", gate={"approval": "ask"}))
    line.wait_for_state(again, lambda state: state["type"] == "PAUSED")
    waiting = line.run(NIGHTLY, scene.recipe("forgotten", gate={"approval": "ask"}))
    assert waiting["name"] == "Skipped", "one run waits for somebody already"
    line.resume(again, {"verdict": "approve", "approver": "Jo", "reason": "seen now"})
    ended = line.wait_for_state(again, lambda state: state["type"] in {"COMPLETED", "FAILED", "CRASHED"})
    assert ended["name"] == "Completed", ended["message"]


def test_a_word_holds_for_the_student_that_was_shown_and_for_no_other(scene: Scene) -> None:
    line = scene.line
    asking = scene.recipe("shown", gate={"approval": "ask"})
    run = line.start(BY_HAND, asking)
    line.wait_for_state(run, lambda state: state["type"] == "PAUSED")
    other = scene.recipe("shown", training={"seed": 7})
    line.server.post("/deployments/", _copy(line, BY_HAND) | {"name": "shown", "parameters": {"recipe": other}})
    assert line.run("distill-student/shown")["name"] == "Completed"
    champion = scene.champion("shown")
    assert champion is not None
    line.resume(run, {"verdict": "approve", "approver": "Jo", "reason": "against the old champion"})
    line.wait_for_state(run, lambda state: state["type"] == "RUNNING")
    ended = line.wait_for_state(run, lambda state: state["type"] in {"COMPLETED", "FAILED", "PAUSED"})
    assert (ended["type"], scene.champion("shown")) == ("PAUSED", champion), "another decision is another question"


def test_a_cancelled_run_cancels_its_training_and_a_cancelled_training_its_run(scene: Scene) -> None:
    line = scene.line
    recipe = scene.recipe("stopped", training={"epochs": 400, "seed": 1}, compute={"train": "pool"})
    run, child, trainer = scene.start_training(recipe)
    asked = time.monotonic()
    line.cancel(run)
    assert line.wait_for_end(run, 60)["type"] == "CANCELLED"
    assert line.wait_for_end(child, 60)["type"] == "CANCELLED"
    gone = seconds_until(lambda: not trainer.is_running())
    stopped = time.monotonic() - asked
    assert stopped < 45, f"the training ended {stopped:.0f} s after the cancellation"
    assert list((line.home / "runs" / "train").glob("*/checkpoints/checkpoint-*")), "it saved where it was"

    run, child, trainer = scene.start_training(recipe)
    asked = time.monotonic()
    line.cancel(child)
    assert line.wait_for_end(child, 60)["type"] == "CANCELLED"
    assert line.wait_for_end(run, 60)["type"] == "CANCELLED"
    print(
        f"\ncancelled: training gone after {stopped:.1f} s ({gone:.1f} after its run); by its child {time.monotonic() - asked:.1f} s"
    )


def test_a_training_that_fails_fails_its_run_with_the_reason(scene: Scene) -> None:
    recipe = scene.recipe("failing", training={"max_length": 16, "seed": 3}, compute={"train": "pool"})
    run = scene.line.start(BY_HAND, recipe)
    ended = scene.line.wait_for_end(run)
    assert ended["name"] == "Failed"
    assert "failing sft: Failed" in ended["message"]
    assert len(scene.line.children(run)) == 1, "its own tasks have retried"


def test_two_runs_of_one_recipe_at_once_pay_once(scene: Scene) -> None:
    line, before = scene.line, scene.requests()
    recipe = scene.recipe("twice", teacher={"max_tokens": 17})
    runs = [line.start(BY_HAND, recipe), line.start(NIGHTLY, recipe)]
    ended = [line.wait_for_end(run) for run in runs]
    assert [state["type"] for state in ended] == ["COMPLETED"] * 2, [state["message"] for state in ended]
    assert scene.requests() - before == 400
    assert len(promotions(line.home / "releases" / "twice")) == 1


def test_a_signed_webhook_ends_in_a_release(scene: Scene) -> None:
    line = scene.line
    recipe = scene.recipe("hooked", curation={"inputs": ["inbox"]}, inbox={"min_new_prompts": 300})
    (line.place / "hooked.yaml").write_text(yaml.safe_dump(recipe))
    _deploy_as(line, "hooked", recipe)
    config = line.place / "webhook.yaml"
    config.write_text(yaml.safe_dump({"recipes": [str(line.place / "hooked.yaml")]}))
    port = free_port()
    command = (sys.executable, "-m", "potstill.cli", "webhook", "--config", str(config), "--port", str(port))
    env = line.server.env | {"POTSTILL_WEBHOOK_SECRETS": SECRET}
    with running(command, env, line.place / "webhook.log"):
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(url), 60)
        sent = time.monotonic()
        codes = [_send(url, f"msg_{start}", b"".join(scene.log[start : start + 200])) for start in (0, 200, 0)]
        assert codes == [(202, False), (202, False), (202, True)]
        wait_for(lambda: scene.champion("hooked"), 240)
        released = time.monotonic() - sent
    [run] = line.server.find(
        "flow_runs", flow_runs={"deployment_id": {"any_": [line.deployment("redistill/hooked")["id"]]}}
    )
    assert line.wait_for_end(run)["name"] == "Completed"
    print(f"\nwebhook to release: {released:.0f} s")


def _deploy_as(line: Line, name: str, recipe: dict[str, Any]) -> None:
    """The demo's nightly deployment under another name, for another recipe."""
    line.server.post("/deployments/", _copy(line, NIGHTLY) | {"name": name, "parameters": {"recipe": recipe}})


def _copy(line: Line, name: str) -> dict[str, Any]:
    found = line.deployment(name)
    same = ("flow_id", "entrypoint", "path", "pull_steps", "work_pool_name", "parameter_openapi_schema", "tags")
    return {key: found[key] for key in same}


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def _send(url: str, message: str, body: bytes) -> tuple[int, bool]:
    """The status of a signed webhook, and whether it was taken for a repeated one."""
    at = datetime.now(UTC)
    headers = {
        "content-type": "application/x-ndjson",
        "webhook-id": message,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(SECRET).sign(message, at, body.decode()),
    }
    reply = httpx.post(f"{url}/inbox/hooked", content=body, headers=headers)
    return reply.status_code, reply.json().get("duplicate", False)
