"""Alerts on a real Prefect server: what it sends to Slack, to a webhook and by mail, for what happens to runs."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from deployments.automations import CONTAINER_SECONDS, automations
from deployments.docker.polls import require_poll
from potstill.errors import OrchestratorError
from potstill.prefect_api import PrefectApi
from tests.ports import free_port
from tests.prefect_server import AUTH, RunningServer, prefect_server, wait_for
from tests.receivers import Received, Receivers, receivers

pytestmark = pytest.mark.flow

SECRETS = ("TSLACK", "SLACKSECRET", "hook-secret", "token-secret", "sekret")
FILE = """
notify:
  - {to: slack, url_env: SLACK_WEBHOOK_URL}
  - {to: webhook, url_env: HOOK_URL, token_env: HOOK_TOKEN, recipes: [tickets]}
  - {to: email, smtp_env: SMTP, sender: potstill@example.com, recipients: [ops@example.com]}
"""
SAYS = """
from decimal import Decimal
from prefect import flow, task
from tasks.events import say_budget, say_released

@task
def release():
    say_released("tickets", "0123456789ab", "passed", "Passed: retention 0.97")

@flow(name="says", flow_run_name="distil-tickets")
def says():
    release()
    assert not say_budget("tickets", "run/tickets", Decimal("7.99"), Decimal(10))
    assert not say_budget("tickets", "month/tickets", Decimal("7.99"), None)
    assert say_budget("tickets", "run/tickets", Decimal("8"), Decimal(10))
    assert not say_budget("tickets", "run/tickets", Decimal("9"), Decimal(10))
says()
"""
ENDS = {
    "failed": {"type": "FAILED", "name": "TimedOut", "message": "it took {{ too }} long <br> 'quoted'"},
    "crashed": {"type": "CRASHED", "message": "no heartbeat"},
    "undecided": {"type": "COMPLETED", "name": "GateUndecided", "message": "12 test prompts are too few"},
    "rejected": {"type": "COMPLETED", "name": "GateRejected", "message": "retention 0.61"},
}


class Alerted(NamedTuple):
    server: RunningServer
    got: Receivers
    file: Path


@pytest.fixture(scope="module")
def alerted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alerted]:
    place = tmp_path_factory.mktemp("alerts")
    file = place / "alerts.yaml"
    file.write_text(FILE)
    with receivers(place) as got, prefect_server(place, **got.env) as server:
        server.env.update(
            SLACK_WEBHOOK_URL="https://hooks.slack.com/services/TSLACK000/BSLACK000/SLACKSECRET00000000000000",
            HOOK_URL=f"{got.webhook_url}/hook-secret",
            HOOK_TOKEN="token-secret",
            SMTP=got.smtp_url,
        )
        yield Alerted(server, got, file)


def _apply(alerted: Alerted, *flags: str, check: bool = True) -> Any:
    return alerted.server.call("-m", "deployments.alerts", str(alerted.file), *flags, check=check)


def test_each_alert_is_told_once_to_each_target_with_its_recipe_and_nothing_is_made_twice(alerted: Alerted) -> None:
    server, got, _ = alerted
    assert (
        "slack: failed, crashed, undecided, rejected, released, budget; recipes: all"
        in _apply(alerted, "--dry-run").stdout
    )
    assert server.find("automations") == []
    first = _apply(alerted, "--test").stdout
    assert Counter(line.split()[0] for line in first.splitlines()) == {"created": 21, "sent": 3}
    assert [len(got.slack), len(got.webhook), len(got.mail)] == [1, 1, 1]
    second = _apply(alerted).stdout
    assert Counter(line.split()[0] for line in second.splitlines()) == {"unchanged": 21}
    assert len(server.find("block_documents", block_documents={"name": {"like_": "potstill-alert-"}})) == 3
    for received in (got.slack, got.webhook, got.mail):
        received.clear()

    runs = {alert: _end(server, "distill-student", "tickets", state) for alert, state in ENDS.items()}
    others = _end(server, "redistill", "other", ENDS["failed"])
    _end(server, "train-student", "gpu", ENDS["failed"])  # its parent fails too, and tells it
    _end(server, "distill-student", "tickets", {"type": "COMPLETED", "message": "Passed"})
    with ThreadPoolExecutor() as both:  # a run and its resumption, at once only to save time
        list(both.map(lambda _: server.call("-c", SAYS), range(2)))
    wait_for(lambda: len(got.slack) >= 7 and len(got.webhook) >= 6 and len(got.mail) >= 7, 90)
    time.sleep(3)  # one that is told twice would come by now

    told = [_of_hook(message) for message in got.webhook]
    expected = dict.fromkeys(["crashed", "failed", "undecided", "rejected", "budget", "released"], 1)
    assert Counter(alert for alert, _ in told) == expected
    for alert, text in told:
        assert "tickets" in text.splitlines()[0]
        assert f"docs/operations.md#{alert}" in text
        assert re.search(r"http://127\.0\.0\.1:\d+/runs/flow-run/[0-9a-f-]{36}", text), text
        if alert in runs:
            assert runs[alert] in text
    texts = dict(told)
    assert "TimedOut: it took {{ too }} long <br> 'quoted'" in texts["failed"]
    assert "tickets@0123456789ab serves from now on. Verdict: passed. Passed: retention 0.97" in texts["released"]
    assert "8.00 of 10.00 USD are committed in account run/tickets" in texts["budget"]
    assert all(message.headers["Authorization"] == "Bearer token-secret" for message in got.webhook)

    for messages in ([str(m.body) for m in got.slack], [m.body for m in got.mail]):
        alerts = Counter(
            found for m in messages for found in re.findall(r"operations\.md#(\w+)", m.replace("=\r\n", ""))
        )
        assert alerts == expected | {"failed": 2}
        assert sum("other failed" in m and others in m.replace("=\r\n", "") for m in messages) == 1
    assert got.slack[0].place.startswith("/services/TSLACK000/")
    assert {message.place for message in got.mail} == {"ops@example.com"}


def test_no_key_is_in_the_servers_log_or_shown_by_its_api(alerted: Alerted) -> None:
    log = (alerted.file.parent / "server.log").read_text()
    shown = str(alerted.server.find("block_documents")) + str(alerted.server.find("automations"))
    assert not [secret for secret in SECRETS if secret in log + shown]


def test_what_the_file_no_longer_names_is_removed_and_what_is_not_ours_stays(alerted: Alerted) -> None:
    server, _, file = alerted
    server.call("-m", "deployments.automations")
    file.write_text(
        "notify: [{to: webhook, url_env: HOOK_URL, token_env: HOOK_TOKEN, recipes: [tickets], on: [failed]}]"
    )
    said = Counter(line.split()[0] for line in _apply(alerted).stdout.splitlines())
    assert said == {"updated": 1, "unchanged": 1, "removed": 19 + 2}, "the test message names the alerts"
    left = {automation["name"] for automation in server.find("automations")}
    others = {automation.name for automation in automations()}
    assert left == {*others, "potstill alert: webhook: failed", "potstill alert: webhook: test"}


def test_a_test_message_that_the_server_cannot_send_is_an_error_that_says_so(alerted: Alerted) -> None:
    alerted.file.write_text("notify: [{to: email, smtp_env: SMTP, sender: a@example.com, recipients: [b@example.com]}]")
    alerted.server.env["SMTP"] = f"smtp://user:sekret@127.0.0.1:{free_port()}"
    failed = _apply(alerted, "--test", check=False)
    assert failed.returncode == 1
    assert "no message to email: Notification failed" in failed.stderr
    assert "sekret" not in failed.stderr + (alerted.file.parent / "server.log").read_text()


def test_after_an_outage_a_run_that_goes_on_or_starts_gets_time_for_its_next_sign_of_life(alerted: Alerted) -> None:
    server = alerted.server
    server.call("-m", "deployments.automations")
    give_time = ("-m", "deployments.automations", "--before-server")
    late, waiting, starting = (_create(server, "redistill", "other") for _ in range(3))
    for run, name in ((late, "Late"), (waiting, "AwaitingConcurrencySlot")):
        server.post(f"/flow_runs/{run}/set_state", {"state": {"type": "SCHEDULED", "name": name}, "force": True})
    assert server.call(*give_time).stdout.startswith("0 runs have time")
    for name in ("Pending", "Submitting"):
        server.post(f"/flow_runs/{starting}/set_state", {"state": {"type": "PENDING", "name": name}})
    wait_for(lambda: server.call(*give_time).stdout.startswith("1 runs have time"), 60)
    run = _end(server, "redistill", "other", {"type": "RUNNING", "name": "Running"})
    related = [
        {
            "prefect.resource.id": "prefect.flow.x",
            "prefect.resource.role": "flow",
            "prefect.resource.name": "redistill",
        },
        {"prefect.resource.id": "prefect.deployment.x", "prefect.resource.role": "deployment"},
    ]
    event = {"event": "prefect.flow-run.heartbeat", "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"}}
    server.post(
        "/events", [event | {"id": str(uuid4()), "occurred": datetime.now(UTC).isoformat(), "related": related}]
    )
    wait_for(lambda: server.call(*give_time).stdout.startswith("2 runs have time"), 60)


def test_where_a_pool_makes_containers_a_run_has_time_for_its_image(alerted: Alerted) -> None:
    server = alerted.server
    server.call("-m", "deployments.automations")
    server.post("/work_pools/", {"name": "in-containers", "type": "kubernetes"})
    assert "updated    potstill: runs that never began\n" in server.call("-m", "deployments.automations").stdout
    [automation] = [each for each in server.find("automations") if each["name"] == "potstill: runs that never began"]
    assert automation["trigger"]["within"] == CONTAINER_SECONDS


def test_a_wrong_auth_string_is_an_error_that_names_its_variable(alerted: Alerted) -> None:
    failed = alerted.server.call("-m", "deployments.automations", check=False, PREFECT_API_AUTH_STRING="potstill:wrong")
    assert failed.returncode == 1
    assert "set PREFECT_API_AUTH_STRING to the server's" in failed.stderr
    assert "wrong" not in failed.stderr


def test_a_containers_health_is_whether_its_worker_polls(alerted: Alerted, monkeypatch: pytest.MonkeyPatch) -> None:
    server = alerted.server
    api = PrefectApi(server.url, ":".join(AUTH))
    server.post("/work_pools/", {"name": "polled", "type": "process"})
    with pytest.raises(OrchestratorError, match="knows no worker w-1"):
        require_poll(api, "polled", "w-1")
    server.post("/work_pools/polled/workers/heartbeat", {"name": "w-1"})
    require_poll(api, "polled", "w-1")
    monkeypatch.setattr("deployments.docker.polls.SILENT_SECONDS", -1)
    with pytest.raises(OrchestratorError, match="is silent"):
        require_poll(api, "polled", "w-1")


def _of_hook(message: Received) -> tuple[str, str]:
    [alert] = re.findall(r"docs/operations\.md#(\w+)", message.body["body"])
    assert message.body["text"] == f"{message.body['subject']}\n{message.body['body']}"
    return alert, message.body["text"]


def _end(server: RunningServer, flow: str, deployment: str, state: dict[str, Any]) -> str:
    """A run of a deployment that ends in a state; what runs it does not matter to the server."""
    run = _create(server, flow, deployment)
    for each in ({"type": "RUNNING"}, state):
        server.post(f"/flow_runs/{run}/set_state", {"state": each, "force": True})
    return run


def _create(server: RunningServer, flow: str, deployment: str) -> str:
    flow_id = server.post("/flows/", {"name": flow})["id"]
    made = server.post("/deployments/", {"name": deployment, "flow_id": flow_id, "enforce_parameter_schema": False})
    parameters = {"recipe": {"name": deployment}}
    return server.post(f"/deployments/{made['id']}/create_flow_run", {"parameters": parameters})["id"]
