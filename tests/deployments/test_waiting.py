"""What a suspended run tells the server last; a local web server takes the place of Prefect's."""

import base64
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.exceptions import Pause
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from deployments.automations import zombies
from tasks import waiting
from tests.ports import free_port
from tests.prefect_server import wait_for
from tests.receivers import receivers

pytestmark = pytest.mark.flow

RUN = str(uuid4())
RUNTIME = {"FLOW_RUN__ID": RUN, "FLOW_RUN__FLOW_NAME": "redistill", "DEPLOYMENT__ID": str(uuid4())}


def test_a_run_that_is_set_aside_says_so_after_its_heartbeats_in_a_form_that_the_zombie_automation_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in RUNTIME.items():
        monkeypatch.setenv(f"PREFECT__RUNTIME__{name}", value)
    monkeypatch.setattr(waiting, "SETTLED_SECONDS", 1.0)
    with receivers(tmp_path) as got:
        server = got.webhook_url.removesuffix("/hook")
        with temporary_settings({PREFECT_API_URL: f"{server}/api", PREFECT_API_AUTH_STRING: "user:word"}):
            with pytest.raises(Pause), waiting.set_aside():
                raise Pause
            assert got.webhook == [], "not before its last heartbeat has arrived"
            wait_for(lambda: got.webhook, 10)
    [said] = got.webhook
    assert said.place == "/api/events"
    assert said.headers["Authorization"] == "Basic " + base64.b64encode(b"user:word").decode()
    [event] = said.body
    assert event["resource"] == {"prefect.resource.id": f"prefect.flow-run.{RUN}"}
    trigger = zombies().trigger
    assert event["event"] in trigger.expect
    assert trigger.match.includes([event["resource"]])
    assert all(wanted.includes(event["related"]) for wanted in trigger.match_related)


def test_an_error_is_no_waiting_and_a_run_by_hand_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(waiting, "SETTLED_SECONDS", 0)
    with receivers(tmp_path) as got:
        with temporary_settings({PREFECT_API_URL: got.webhook_url}):
            with pytest.raises(ValueError, match="other"), waiting.set_aside():
                raise ValueError("other")
            with pytest.raises(Pause), waiting.set_aside():
                raise Pause
        assert got.webhook == []


def test_a_server_that_cannot_be_told_is_said_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in RUNTIME.items():
        monkeypatch.setenv(f"PREFECT__RUNTIME__{name}", value)
    monkeypatch.setattr(waiting, "SETTLED_SECONDS", 0)
    monkeypatch.setattr(waiting, "PAUSES_SECONDS", (0, 0))
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        with pytest.raises(Pause), waiting.set_aside():
            raise Pause
        wait_for(lambda: caplog.messages, 10)
    [said] = caplog.messages
    assert said.startswith("the server does not know that this run waits, and may call it Crashed: Prefect at http://")
