"""Put the alerts of a YAML file on the Prefect server that `PREFECT_API_URL` names. Applied again, it changes only what differs."""

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from prefect.events import emit_event
from prefect.settings import PREFECT_UI_URL

from deployments.alerts.blocks import block_of, remove_others, save
from deployments.alerts.config import AlertsFile, load_alerts
from deployments.alerts.rules import PREFIX, TEST, automations_of
from deployments.automations import put, server, show
from potstill.errors import OrchestratorError
from potstill.exits import exit_code_of

DONE = "prefect.automation.action.executed"
FAILED = "prefect.automation.action.failed"
ANSWER_SECONDS = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Apply the file; exit code 1 where a test message could not be sent."""
    parser = argparse.ArgumentParser(prog="python -m deployments.alerts", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--dry-run", action="store_true", help="check the file and its variables, and say what it asks for"
    )
    parser.add_argument("--test", action="store_true", help="then let the server send one message to each target")
    given = parser.parse_args(arguments)
    alerts = load_alerts(given.file)
    for target in alerts.notify:
        block_of(target)
    if given.dry_run:
        for target in alerts.notify:
            print(f"{target.label}: {', '.join(target.on)}; recipes: {', '.join(target.recipes or ['all'])}")
        return 0
    with server() as client:
        _apply(alerts, client)
        if given.test:
            _test(alerts, client)
    return 0


def _apply(alerts: AlertsFile, client: SyncPrefectClient) -> None:
    ui_url = (PREFECT_UI_URL.value() or "").rstrip("/")
    wanted = [rule for target in alerts.notify for rule in automations_of(target, save(target), ui_url)]
    show(put(wanted, PREFIX, client))
    for name in remove_others({target.label for target in alerts.notify}, client):
        print(f"removed    block {name}")


def _test(alerts: AlertsFile, client: SyncPrefectClient) -> None:
    """Errors: `OrchestratorError` with what the server says of a message that it could not send."""
    since = datetime.now(UTC)
    names = {f"{PREFIX}{target.label}: test": target.label for target in alerts.notify}
    time.sleep(1)  # the server takes up new automations by an event of its own
    for label in names.values():
        emit_event(TEST, resource={"prefect.resource.id": f"{TEST}.{label}"})
    missing = {str(client.read_automations_by_name(name)[0].id): label for name, label in names.items()}
    failed: dict[str, str] = {}
    deadline = time.monotonic() + ANSWER_SECONDS
    while missing and time.monotonic() < deadline:
        time.sleep(1)
        query = {"filter": {"occurred": {"since": since.isoformat()}, "event": {"name": [DONE, FAILED]}}, "limit": 50}
        for event in client.request("POST", "/events/filter", json=query).json()["events"]:
            label = missing.pop(event["resource"]["prefect.resource.id"].removeprefix("prefect.automation."), None)
            if label is not None and event["event"] == FAILED:
                failed[label] = str(event["payload"].get("reason", "no reason given"))
            elif label is not None:
                print(f"sent       {label}")
    failed |= dict.fromkeys(missing.values(), f"the server has sent nothing for {ANSWER_SECONDS} s; its log says why")
    if failed:
        raise OrchestratorError("; ".join(f"no message to {label}: {why}" for label, why in failed.items()))


if __name__ == "__main__":
    sys.exit(exit_code_of(main, debug=False))
