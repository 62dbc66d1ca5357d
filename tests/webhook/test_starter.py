"""What the receiver tells Prefect, and when: a local server stands for Prefect, and may be away."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from potstill.inbox import Inbox, seal
from potstill.inbox.starts import decide_retry, decide_start, is_due, last_start, note_start, pending_start
from potstill.prefect_api import PrefectApi
from potstill.recipe import Inbox as Debounce
from potstill.webhook import starter
from potstill.webhook.starter import Starter, Watch
from tests.scripted_server import ScriptedHandler, ScriptedServer

pytestmark = pytest.mark.flow

DEBOUNCE = Debounce(min_new_prompts=3, min_interval_seconds=100)
EAGER = Debounce(min_new_prompts=1, min_interval_seconds=0)


class FakePrefect(ScriptedServer):
    """Remembers runs by their idempotency key, as Prefect does, and every event by its id."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False
        self.is_another = False
        self.loses_answers = False
        self.has_deployment = True
        self.runs: dict[str, dict[str, Any]] = {}
        self.events: dict[str, dict[str, Any]] = {}
        self.num_requests = 0

    @property
    def api(self) -> PrefectApi:
        return PrefectApi(f"{self.origin}/api")

    def reply(self, path: str, content: Any) -> tuple[int, Any]:
        self.num_requests += 1
        if self.is_away:
            return 503, {}
        match path.removeprefix("/api").strip("/").split("/"):
            case ["deployments", "filter"]:
                assert content == {
                    "deployments": {"name": {"any_": ["demo"]}},
                    "flows": {"name": {"any_": ["redistill"]}},
                }
                return 200, [{"id": "d1"}] if self.has_deployment else []
            case ["deployments", "d1", "create_flow_run"]:
                key = content["idempotency_key"]
                new = {"id": f"run-{len(self.runs)}", "state_type": "SCHEDULED", "body": content}
                run = self.runs.setdefault(key, new)
                return (500, {}) if self.loses_answers else (201, run)
            case ["flow_runs", "filter"]:
                return 200, [run for run in self.runs.values() if run["id"] in content["flow_runs"]["id"]["any_"]]
            case ["events"]:
                self.events |= {event["id"]: event for event in content}
                return 204, None
        raise AssertionError(path)


class _Handler(ScriptedHandler[FakePrefect]):
    def serve(self) -> None:
        body = self.read_body()
        status, content = self.teacher.reply(self.path, json.loads(body) if body else None)
        if self.teacher.is_another:
            content = None
        answer = (b"<html>" if self.teacher.is_another else b"") if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


FakePrefect.handler = _Handler


@pytest.fixture
def prefect() -> Iterator[FakePrefect]:
    with FakePrefect() as prefect:
        yield prefect


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    with Inbox(tmp_path, "demo") as inbox:
        yield inbox


def land(inbox: Inbox, *names: object) -> None:
    for name in names:
        assert inbox.land(str(name), "b", [b'{"messages": []}']).outcome == "landed"


def watch(inbox: Inbox, prefect: FakePrefect, debounce: Debounce = DEBOUNCE) -> Watch:
    return Watch(inbox, debounce, lambda: prefect.api)


class TestRetry:
    """A run that took what had landed and then broke down; nothing more lands."""

    @pytest.fixture
    def taken(self, inbox, prefect, tmp_path, monkeypatch) -> Watch:
        monkeypatch.setattr(starter, "LOOK_SECONDS", 0.0)
        land(inbox, 1, 2, 3)
        started = watch(inbox, prefect)
        started.look()
        seal(tmp_path, "demo")
        return started

    def end(self, prefect: FakePrefect, state: str, seconds_ago: float = 1000) -> None:
        ended = datetime.now(UTC) - timedelta(seconds=seconds_ago)
        list(prefect.runs.values())[-1].update(state_type=state, end_time=ended.isoformat())

    @pytest.mark.parametrize(("state", "times"), [("CRASHED", 3), ("FAILED", 1)])
    def test_it_is_started_again_so_often_and_then_said(self, taken, prefect, caplog, state, times) -> None:
        for _ in range(times + 3):
            self.end(prefect, state)
            taken.look()
        assert len(prefect.runs) == 1 + times
        assert [record.levelname for record in caplog.records].count("ERROR") == 1
        assert f"is {state}, and is not started again: mend it" in caplog.text

    def test_it_is_not_started_again_at_once(self, taken, prefect) -> None:
        self.end(prefect, "CRASHED", seconds_ago=starter.AGAIN_SECONDS - 10)
        taken.look()
        assert len(prefect.runs) == 1
        self.end(prefect, "CRASHED", seconds_ago=starter.AGAIN_SECONDS + 10)
        taken.look()
        assert len(prefect.runs) == 2

    @pytest.mark.parametrize("state", ["RUNNING", "PAUSED", "COMPLETED", "CANCELLED"])
    def test_what_goes_on_or_has_concluded_is_left_alone(self, taken, prefect, state) -> None:
        self.end(prefect, state)
        taken.look()
        assert len(prefect.runs) == 1

    @pytest.mark.parametrize("how", ["cancelled", "deleted"])
    def test_what_somebody_broke_off_after_it_took_prompts_is_said_once_with_the_remedy(
        self, taken, prefect, caplog, how
    ) -> None:
        if how == "deleted":
            prefect.runs.clear()
        else:
            self.end(prefect, "CANCELLED")
        taken.look()
        taken.look()
        [record] = caplog.records
        assert record.levelname == "WARNING"
        assert f"run run-0 had taken prompts and was {how}" in caplog.text
        assert "`prefect deployment run redistill/demo`" in caplog.text

    def test_what_was_cancelled_before_it_took_any_is_not_said_to_have(self, inbox, prefect, caplog) -> None:
        land(inbox, 1, 2, 3)
        watching = watch(inbox, prefect)
        watching.look()
        self.end(prefect, "CANCELLED")
        watching.look()
        assert caplog.text == "", "they wait, and the next start brings them"

    def test_of_two_receivers_on_one_inbox_one_retries(self, taken, prefect, inbox, tmp_path) -> None:
        last = last_start(inbox)
        with Inbox(tmp_path, "demo") as other:
            assert decide_retry(inbox, last, 3) is not None
            assert decide_retry(other, last, 3) is None


class TestDebounce:
    def test_below_the_threshold_no_run_starts(self, inbox) -> None:
        land(inbox, 1, 2)
        assert not is_due(inbox, DEBOUNCE)
        land(inbox, 3)
        assert is_due(inbox, DEBOUNCE)

    def test_within_the_interval_of_the_last_no_run_starts_also_after_a_restart(self, inbox, tmp_path) -> None:
        land(inbox, 1, 2, 3)
        start = decide_start(inbox, DEBOUNCE, now=1000)
        note_start(inbox, start.key, "run", now=1005)
        land(inbox, 4)
        with Inbox(tmp_path, "demo") as restarted:
            assert [is_due(restarted, DEBOUNCE, now=now) for now in (1005, 1104.9, 1105)] == [False, False, True]
            assert not is_due(restarted, DEBOUNCE, now=990), "a clock that was set back a little"
            assert is_due(restarted, DEBOUNCE, now=5), "a clock that was set back far holds nobody for ever"

    def test_of_two_receivers_on_one_inbox_one_decides(self, inbox, tmp_path) -> None:
        land(inbox, 1, 2, 3)
        with Inbox(tmp_path, "demo") as other:
            assert decide_start(inbox, DEBOUNCE) is not None
            land(inbox, 4)
            assert decide_start(other, DEBOUNCE) is None

    def test_what_was_sealed_waits_no_more(self, inbox, tmp_path) -> None:
        land(inbox, 1, 2, 3)
        seal(tmp_path, "demo")
        assert not is_due(inbox, DEBOUNCE)

    def test_the_key_is_of_the_deliveries_that_wait(self, inbox, tmp_path) -> None:
        land(inbox, 1, 2, 3)
        first = decide_start(inbox, EAGER)
        assert first.num_prompts == 3
        assert decide_start(inbox, EAGER) is None, "the same deliveries"
        land(inbox, 4)
        assert decide_start(inbox, EAGER).key != first.key
        with Inbox(tmp_path, "other") as other:
            land(other, 1, 2, 3)
            assert decide_start(other, EAGER).key != first.key


class TestStarting:
    def test_a_run_of_the_recipes_deployment_starts_once(self, inbox, prefect) -> None:
        watching = watch(inbox, prefect)
        land(inbox, 1, 2)
        watching.look()
        assert prefect.runs == {}
        land(inbox, 3)
        for _ in range(3):
            watching.look()
        [run] = prefect.runs.values()
        assert run["body"].keys() == {"idempotency_key", "tags"}
        assert last_start(inbox).run_id == run["id"]

    def test_a_crash_between_starting_and_noting_it_starts_no_second_run(self, inbox, prefect, tmp_path) -> None:
        land(inbox, 1, 2, 3)
        prefect.loses_answers = True
        watch(inbox, prefect).look()
        assert len(prefect.runs) == 1
        assert pending_start(inbox) is not None
        prefect.loses_answers = False
        land(inbox, 4, 5, 6)  # meanwhile more has landed
        with Inbox(tmp_path, "demo") as restarted:
            watch(restarted, prefect).look()
            assert len(prefect.runs) == 1
            assert pending_start(restarted) is None

    def test_while_the_last_run_has_not_begun_no_other_starts(self, inbox, prefect, tmp_path) -> None:
        watching = watch(inbox, prefect, EAGER)
        for number in range(3):
            land(inbox, number)
            watching.look()
        [run] = prefect.runs.values()
        run["state_type"] = "RUNNING"
        watching.look()
        assert len(prefect.runs) == 2, "it may have sealed before the others landed"
        seal(tmp_path, "demo")
        for run in prefect.runs.values():
            run["state_type"] = "COMPLETED"
        watching.look()
        assert len(prefect.runs) == 2, "nothing waits"

    @pytest.mark.parametrize("end", ["CRASHED", "FAILED", "CANCELLED", None])
    def test_a_run_that_ended_before_it_took_what_had_landed_is_started_again_after_a_while(
        self, inbox, prefect, monkeypatch, end
    ) -> None:
        land(inbox, 1)
        watch = Watch(inbox, EAGER, lambda: prefect.api)
        watch.look()
        [first] = prefect.runs.values()
        first["state_type"] = "RUNNING"
        monkeypatch.setattr(starter, "AGAIN_SECONDS", 0.0)
        watch.look()
        assert len(prefect.runs) == 1, "it goes on"
        first.update({"state_type": end} if end else {"id": "deleted"})
        monkeypatch.setattr(starter, "AGAIN_SECONDS", 60.0)
        watch.look()
        assert len(prefect.runs) == 1, "not at once"
        monkeypatch.setattr(starter, "AGAIN_SECONDS", 0.0)
        watch.look()
        watch.look()
        assert len(prefect.runs) == 2
        second = list(prefect.runs)[1]
        assert second == f"{next(iter(prefect.runs))}-again-1"

    @pytest.mark.parametrize("more_lands", [False, True])
    def test_runs_that_take_nothing_are_said_from_the_third_on_with_what_to_look_at(
        self, inbox, prefect, monkeypatch, caplog, more_lands
    ) -> None:
        """The workers' POTSTILL_HOME is another one: each run ends Skipped, and only its own log says why."""
        monkeypatch.setattr(starter, "AGAIN_SECONDS", 0.0)
        land(inbox, 0)
        watching = watch(inbox, prefect, EAGER)
        said = []
        for number in range(1, 5):
            watching.look()
            said.append(len(caplog.records))
            assert len(prefect.runs) == number
            list(prefect.runs.values())[-1]["state_type"] = "COMPLETED"
            if more_lands:
                land(inbox, number)
        assert said == [0, 0, 1, 2]
        assert caplog.messages[0].startswith(f"demo: 2 runs took nothing of what waits in {inbox.path}: ")
        assert "POTSTILL_HOME" in caplog.messages[0]

    def test_runs_that_take_what_landed_are_not_said_to_take_nothing(
        self, inbox, prefect, tmp_path, monkeypatch, caplog
    ) -> None:
        monkeypatch.setattr(starter, "AGAIN_SECONDS", 0.0)
        watching = watch(inbox, prefect, EAGER)
        for number in range(4):
            land(inbox, number)
            watching.look()
            seal(tmp_path, "demo")
            list(prefect.runs.values())[-1]["state_type"] = "COMPLETED"
        assert len(prefect.runs) == 4
        assert caplog.text == ""

    def test_a_run_that_died_before_it_began_holds_nobody_once_it_is_crashed(self, inbox, prefect, monkeypatch) -> None:
        monkeypatch.setattr(starter, "AGAIN_SECONDS", 0.0)
        watching = watch(inbox, prefect, EAGER)
        land(inbox, 1)
        watching.look()
        [first] = prefect.runs.values()
        first["state_type"] = "PENDING"
        land(inbox, 2)
        watching.look()
        assert len(prefect.runs) == 1, "a worker has it"
        first["state_type"] = "CRASHED"
        watching.look()
        assert len(prefect.runs) == 2
        assert last_start(inbox).run_id == list(prefect.runs.values())[1]["id"]

    def test_a_run_that_somebody_deleted_holds_nobody(self, inbox, prefect) -> None:
        watching = watch(inbox, prefect, EAGER)
        land(inbox, 1)
        watching.look()
        first = dict(prefect.runs)
        prefect.runs.clear()
        watching.look()
        assert prefect.runs == {}, "the same deliveries start no second run"
        land(inbox, 2)
        watching.look()
        assert prefect.runs.keys().isdisjoint(first)


class TestAway:
    def test_prompts_stay_and_the_run_starts_when_it_is_back_said_once(
        self, inbox, prefect, monkeypatch, caplog
    ) -> None:
        now = [0.0]
        monkeypatch.setattr(starter, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
        caplog.set_level("INFO", "potstill")
        prefect.is_away = True
        watching = watch(inbox, prefect)
        land(inbox, 1, 2, 3)
        asked_at = []
        for second in range(200):
            now[0] = second
            before = prefect.num_requests
            watching.look()
            asked_at += [second] * (prefect.num_requests > before)
        assert asked_at == [0, 1, 3, 7, 15, 31, 63, 123, 183], "later and later, and once a minute in the end"
        prefect.is_away = False
        now[0] += starter.LONGEST_PAUSE_SECONDS
        watching.look()
        assert len(prefect.runs) == 1
        assert [(record.levelname, record.message.partition(":")[2][:18]) for record in caplog.records] == [
            ("WARNING", " prompts are kept,"),
            ("INFO", " started run run-0"),
            ("INFO", " goes on"),
        ]

    def test_a_deployment_that_is_missing_is_said_with_the_remedy(self, inbox, prefect, caplog) -> None:
        prefect.has_deployment = False
        land(inbox, 1, 2, 3)
        watch(inbox, prefect).look()
        assert len(prefect.events) == 1, "other automations are told all the same"
        assert "no deployment redistill/demo at" in caplog.text
        assert "run `prefect deploy --all`" in caplog.text
        prefect.has_deployment = True
        watch(inbox, prefect).look()
        assert len(prefect.runs) == 1

    def test_what_is_not_prefect_stops_no_loop(self, inbox, prefect, caplog) -> None:
        land(inbox, 1, 2, 3)
        Watch(inbox, DEBOUNCE, lambda: PrefectApi("http://[")).look()
        assert "does not answer" in caplog.text
        caplog.clear()
        prefect.is_another = True
        watch(inbox, prefect).look()
        assert "does not answer as Prefect does to POST /deployments/filter" in caplog.text


class TestEvents:
    def test_each_delivery_is_told_of_once_with_counts_only(self, inbox, prefect, tmp_path) -> None:
        land(inbox, 1, 2)
        watch(inbox, prefect).look()
        watch(inbox, prefect).look()
        [event] = prefect.events.values()
        assert event["event"] == "potstill.prompts.landed"
        assert event["resource"] == {"prefect.resource.id": "potstill.inbox.demo", "prefect.resource.name": "demo"}
        assert event["payload"] == {"recipe": "demo", "deliveries": 2, "prompts": 2, "waiting": 2}
        land(inbox, 3)
        seal(tmp_path, "demo")
        watch(inbox, prefect).look()
        assert [event["payload"]["prompts"] for event in prefect.events.values()] == [2, 1]

    def test_one_that_is_sent_again_has_the_same_id(self, inbox, prefect, monkeypatch) -> None:
        land(inbox, 1)
        monkeypatch.setattr(starter, "note_announced", lambda *_: None)  # a crash before it was noted
        for _ in range(2):
            watch(inbox, prefect).look()
        assert len(prefect.events) == 1


@contextmanager
def running(found: Starter) -> Iterator[None]:
    found.start()
    try:
        yield
    finally:
        found.stop()


def test_the_starter_looks_by_itself_and_a_call_that_hangs_does_not_hold_its_end(inbox, prefect, monkeypatch) -> None:
    monkeypatch.setattr(starter, "JOIN_SECONDS", 0.3)
    land(inbox, 1, 2, 3)
    with running(Starter({"demo": (inbox, DEBOUNCE)}, lambda: prefect.api, 0.01)):
        deadline = time.monotonic() + 5
        while not prefect.events and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(prefect.runs) == 1

    hanging, ended = threading.Event(), threading.Event()

    def hang() -> PrefectApi:
        hanging.set()
        ended.wait(10)
        return prefect.api

    land(inbox, 4, 5, 6)
    began = 0.0
    with running(Starter({"demo": (inbox, DEBOUNCE)}, hang, 0.01)):
        assert hanging.wait(5)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    ended.set()
