"""The automations that every server needs, judged by Prefect's own rules on a clock of the test's; no server runs."""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.events.schemas.automations import EventTrigger
from prefect.server.database import provide_database_interface
from prefect.server.events import triggers
from prefect.server.events.actions import ChangeFlowRunState
from prefect.server.events.models.automations import automations_session, create_automation
from prefect.server.events.schemas.automations import Automation, Firing
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings
from prefect.types._datetime import now

from deployments.alerts.rules import ENDED, PARENTS
from deployments.automations import FLOWS, HEARTBEAT_SECONDS, MISSED_SECONDS, PREFIX, automations
from tasks.events import WAITING

pytestmark = pytest.mark.flow

ROOT = Path(__file__).parents[2]
LATE_SECONDS = 4
"""Prefect looks at what is due every 5 s."""

TAKEN = [(0, "Scheduled"), (1, "Pending"), (2, "Submitting")]
BEGUN = [*TAKEN, (10, "Running"), (11, "heartbeat")]
AGAIN = [(20, "Crashed"), (600, "Scheduled"), (610, "Pending"), (615, "Rerunning")]
ENDS = ("Completed", "Failed", "Crashed", "GateRejected", "Skipped")


def test_the_automations_look_at_every_flow_of_ours() -> None:
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
    for automation in automations():
        assert automation.name.startswith(PREFIX)
        assert isinstance(automation.trigger, EventTrigger)
        assert automation.trigger.within.total_seconds() == MISSED_SECONDS


Life = Callable[..., list[tuple[float, str]]]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """`ended(events)`: when Prefect's rules end a run, and how, of which they hear these events and then nothing."""
    url = f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('prefect') / 'prefect.db'}"
    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: url}), asyncio.Runner() as runner:
        runner.run(_put_automations())
        yield lambda events, **whose: runner.run(_live(events, **whose))
        runner.run(triggers.reset())


@pytest.mark.parametrize(
    ("events", "becomes"),
    [
        (TAKEN[:2], "CRASHED"),
        (TAKEN, "CRASHED"),
        ([*TAKEN, (70, "InfrastructurePending")], "CRASHED"),
        ([*TAKEN, (10, "Running")], "CRASHED"),
        (BEGUN, "CRASHED"),
        ([*BEGUN, *AGAIN[:-1]], "CRASHED"),
        ([*BEGUN, *AGAIN], "CRASHED"),
        ([*TAKEN, (50, "Cancelling")], "CANCELLED"),
        ([*BEGUN, (50, "Cancelling")], "CANCELLED"),
    ],
)
def test_a_run_that_dies_with_its_worker_ends_whatever_was_heard_of_it_last(
    ended: Life, events: list[tuple[float, str]], becomes: str
) -> None:
    [(found, state)] = ended(events)
    assert state == becomes
    assert 0 <= found - events[-1][0] - MISSED_SECONDS <= LATE_SECONDS


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([(0, "Scheduled"), (15, "Late")], id="no worker"),
        pytest.param([(0, "Scheduled"), (5, "AwaitingConcurrencySlot"), (50, "Late")], id="no slot"),
        pytest.param([*TAKEN, (90, "Running"), (170, "heartbeat"), (171, "Completed")], id="slow start"),
        pytest.param([*TAKEN, (11, "heartbeat"), (41, "heartbeat"), (70, "Completed")], id="its Running was lost"),
        pytest.param([*BEGUN, (30, "Suspended"), (31, "heartbeat"), (35, WAITING)], id="suspended"),
        pytest.param([*TAKEN, (10, "Running"), (12, "Suspended")], id="suspended at once"),
        pytest.param([*TAKEN, (11, "heartbeat"), (16, WAITING)], id="its Suspended was lost"),
        pytest.param([*TAKEN, (10, "Cancelling"), (15, "Cancelled")], id="cancelled"),
        pytest.param([*BEGUN, (20, "Cancelling"), (41, "heartbeat"), (71, "Cancelled")], id="saves first"),
        *[pytest.param([*BEGUN, (20, end)], id=end) for end in ENDS],
    ],
)
def test_what_waits_lives_or_has_ended_is_let_alone(ended: Life, events: list[tuple[float, str]]) -> None:
    assert ended(events) == []


@pytest.mark.parametrize(("flow", "is_deployed"), [("somebody-elses", True), ("redistill", False)])
def test_runs_of_others_and_by_hand_are_let_alone(ended: Life, flow: str, is_deployed: bool) -> None:
    for events in (TAKEN, BEGUN, [*TAKEN, (20, "Cancelling")]):
        assert ended(events, flow=flow, is_deployed=is_deployed) == []


async def _live(
    events: Sequence[tuple[float, str]], *, flow: str = "redistill", is_deployed: bool = True
) -> list[tuple[float, str]]:
    begin = now("UTC") + timedelta(hours=1)  # ahead of the clock, so that Prefect does not think itself behind
    run = {"prefect.resource.id": f"prefect.flow-run.{uuid4()}"}
    related = [{"prefect.resource.role": "flow", "prefect.resource.name": flow, "prefect.resource.id": "f"}]
    if is_deployed:
        related.append({"prefect.resource.role": "deployment", "prefect.resource.id": "d"})
    looks = {at + MISSED_SECONDS + LATE_SECONDS for at, _ in events} | {events[-1][0] + MISSED_SECONDS - 1}
    found: list[tuple[float, str]] = []
    time = 0.0

    async def act(firing: Firing) -> None:
        if run["prefect.resource.id"] in firing.triggering_labels.values():
            [action] = firing.trigger.automation.actions
            assert isinstance(action, ChangeFlowRunState)
            found.append((time, action.state.value))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triggers, "act", act)
        for time, name in sorted([*events, *((at, "") for at in looks)]):
            if name:
                event = {
                    "id": uuid4(),
                    "occurred": begin + timedelta(seconds=time),
                    "event": name if name == WAITING else f"prefect.flow-run.{name}",
                    "resource": run,
                    "related": related,
                }
                await triggers.reactive_evaluation(ReceivedEvent.model_validate(event))
            else:
                for trigger in triggers.triggers.values():
                    as_of = begin + timedelta(seconds=time)
                    await triggers.proactive_evaluation(trigger, as_of)  # pyright: ignore[reportArgumentType] - it is one
    return found


async def _put_automations() -> None:
    db = provide_database_interface()
    names = ("automation", "automation_related_resource", "automation_bucket", "automation_event_follower")
    tables = [db.Base.metadata.tables[name] for name in names]
    async with (await db.engine()).begin() as connection:
        await connection.run_sync(db.Base.metadata.create_all, tables=tables)
    async with automations_session(begin_transaction=True) as session:
        for automation in automations():
            await create_automation(session, Automation.model_validate(automation.model_dump(mode="json")))
    await triggers.reconcile_automations(force=True)
