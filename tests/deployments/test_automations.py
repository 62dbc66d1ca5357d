"""The automations that every server needs; no server runs."""

import re
from pathlib import Path

from deployments.alerts.rules import ENDED, PARENTS
from deployments.automations import FLOWS, HEARTBEAT_SECONDS, MISSED_SECONDS, PREFIX, zombies

ROOT = Path(__file__).parents[2]


def test_the_zombie_automation_looks_at_every_flow_of_ours() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "flows").glob("*.py"))
    named = set(re.findall(r'@flow\([^)]*?name="([^"]+)"', text, re.DOTALL))
    assert "distill-student" in named
    assert named <= set(FLOWS)
    assert set(PARENTS) <= set(FLOWS)


def test_alerts_wait_for_states_that_a_run_can_end_in() -> None:
    reporting = (ROOT / "tasks" / "reporting.py").read_text()
    for name in ("GateRejected", "GateUndecided"):
        assert name in str(ENDED)
        assert f'"{name}"' in reporting


def test_a_dead_run_is_found_in_less_than_two_minutes_and_never_after_one_lost_heartbeat() -> None:
    assert 2 * HEARTBEAT_SECONDS < MISSED_SECONDS <= 120 - 15
    automation = zombies()
    assert automation.name.startswith(PREFIX)
    assert automation.trigger.within.total_seconds() == MISSED_SECONDS
