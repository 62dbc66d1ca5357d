"""The same automations with Prefect on PostgreSQL: put there, told, and given time after an outage."""

from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from tests.postgres import PostgresServer
from tests.prefect_server import prefect_server, wait_for
from tests.receivers import receivers

pytestmark = pytest.mark.drill


def test_automations_alerts_and_the_time_after_an_outage_on_postgresql(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    address = postgres.new_prefect_database()
    alerts = tmp_path / "alerts.yaml"
    alerts.write_text("notify: [{to: webhook, url_env: HOOK_URL}]")
    settings = {"PREFECT_API_DATABASE_CONNECTION_URL": address}
    with receivers(tmp_path) as got, prefect_server(tmp_path, **settings) as server:
        for said in ("created", "unchanged"):
            assert {line.split()[0] for line in server.call("-m", "deployments.automations").stdout.splitlines()} == {
                said
            }
        sent = server.call("-m", "deployments.alerts", str(alerts), "--test", HOOK_URL=got.webhook_url).stdout
        assert "sent       webhook" in sent
        assert [message.body["subject"] for message in got.webhook] == ["Potstill: a test"]
        event = {
            "id": str(uuid4()),
            "event": "prefect.flow-run.heartbeat",
            "occurred": datetime.now(UTC).isoformat(),
            "resource": {"prefect.resource.id": f"prefect.flow-run.{uuid4()}"},
            "related": [
                {"prefect.resource.id": "f", "prefect.resource.role": "flow", "prefect.resource.name": "redistill"},
                {"prefect.resource.id": "d", "prefect.resource.role": "deployment"},
            ],
        }
        server.post("/events", [event])
        give_time = ("-m", "deployments.automations", "--before-server")
        wait_for(lambda: server.call(*give_time).stdout.startswith("1 runs have time"), 20)
