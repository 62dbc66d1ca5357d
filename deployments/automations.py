"""The automations that every server needs, and how automations are put on a server: by name, as often as you like.

`python -m deployments.automations` creates or corrects what is wanted and removes what no longer is. `PREFECT_API_URL` and
`PREFECT_API_AUTH_STRING` name the server. Exit code 0: the server has what is wanted, whoever put it there.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, NamedTuple
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

from potstill.errors import OrchestratorError
from potstill.exits import exit_code_of
from potstill.prefect_api import AUTH_VARIABLE, URL_VARIABLE
from tasks.events import WAITING

PREFIX = "potstill: "
"""Ours, by name: another automation is never touched."""
FLOWS = ["distill-student", "redistill", "train-student", "evaluate-student", "watch"]
"""Whose runs these automations look at."""
HEARTBEAT_SECONDS = 30
"""What the work pools' templates set as `PREFECT_FLOWS_HEARTBEAT_FREQUENCY`: the least that Prefect takes."""
MISSED_SECONDS = 90
"""Three heartbeats. A run that is silent for so long is dead: they come from a thread of their own, the first at once."""
CONTAINER_SECONDS = 1800
"""So long may a run be silent that begins in a container: a machine may be made and an image fetched first."""
TAKEN = {f"prefect.flow-run.{name}" for name in ("Pending", "Submitting", "InfrastructurePending")}
"""States of a run that a worker has taken and that has not begun."""
BEATING = {f"prefect.flow-run.{name}" for name in ("Running", "Rerunning", "Retrying", "heartbeat")}
"""After these a run sends a heartbeat, or ends."""
GONE = (
    "the run's process, and the worker that would have reported its end, are gone (killed, out of memory, machine down). "
    "Start the same recipe again: what is done and paid for is found. See docs/operations.md#crashed"
)
PAGE = 200


class Change(NamedTuple):
    """What was done about one automation."""

    name: str
    what: Literal["created", "updated", "unchanged", "removed"]


def automations(start_seconds: int = MISSED_SECONDS) -> list[AutomationCore]:
    """All that a server needs whose runs begin within so many seconds after a worker took them."""
    return [zombies(), never_begun(start_seconds), never_cancelled()]


def zombies() -> AutomationCore:
    """Runs of deployments that begin and then send no heartbeat for a while become Crashed: slots are freed, alerts go out.

    Any event of a run ends the wait for its next heartbeat, so that states with names of their own need no list here. A run by
    hand is let alone: it holds no slot, and its heartbeats are as rare as Prefect's default. Prefect itself refuses to crash a
    run that has ended, so a heartbeat that comes after the end does no harm; for suspended runs see `tasks.waiting`.
    """
    return _silent(
        "zombie runs",
        "Runs that stopped sending heartbeats while running become Crashed.",
        BEATING,
        MISSED_SECONDS,
        _becomes(StateType.CRASHED, f"No heartbeat for {MISSED_SECONDS} s: {GONE}"),
    )


def never_begun(seconds: int) -> AutomationCore:
    """Runs of deployments that a worker took and that then say nothing become Crashed: before they begin they send no heartbeat.

    A run that is scheduled or late, that waits for a slot or for somebody, has been taken by no worker: it may wait for ever.
    Heartbeats count too, so that one event which a busy server lost is held against nobody; they do not name the run's pool.
    """
    return _silent(
        "runs that never began",
        f"Runs that a worker took and that say nothing for {seconds} s become Crashed.",
        TAKEN,
        seconds,
        _becomes(StateType.CRASHED, f"Not begun {seconds} s after a worker took it: {GONE}"),
    )


def never_cancelled() -> AutomationCore:
    """Runs that are cancelled after their death become Cancelled: Prefect lets a Cancelling run become nothing else."""
    return _silent(
        "runs that were dead when cancelled",
        f"Runs that are being cancelled and say nothing for {MISSED_SECONDS} s become Cancelled.",
        {"prefect.flow-run.Cancelling"},
        MISSED_SECONDS,
        _becomes(StateType.CANCELLED, f"Nobody answered to the cancellation for {MISSED_SECONDS} s: {GONE}"),
    )


def start_seconds(client: SyncPrefectClient) -> int:
    """How long a run may take to begin in the slowest of the server's pools."""
    types = {pool.type for pool in client.read_work_pools(limit=PAGE)}
    return MISSED_SECONDS if types <= {"process"} else CONTAINER_SECONDS


def of_deployments(flows: Sequence[str] = FLOWS) -> list[Any]:
    """What a trigger's `match_related` says for the runs of these flows that a deployment started."""
    return [
        {"prefect.resource.role": "flow", "prefect.resource.name": list(flows)},
        {"prefect.resource.role": "deployment"},
    ]


def put(wanted: Sequence[AutomationCore], prefix: str, client: SyncPrefectClient) -> list[Change]:
    """Bring the automations whose names begin with `prefix` to what is wanted; one that is right is not touched.

    Touching would start its windows again, and what a zombie automation waits for would be forgotten.
    """
    found: dict[str, list[Automation]] = {}
    for automation in _all(client):
        if automation.name.startswith(prefix):
            found.setdefault(automation.name, []).append(automation)
    changes = [_put(automation, found.pop(automation.name, []), client) for automation in wanted]
    for name, unwanted in found.items():
        _remove(unwanted, client)
        changes.append(Change(name, "removed"))
    return changes


@contextmanager
def server() -> Iterator[SyncPrefectClient]:
    """Prefect's client. Errors: `OrchestratorError` where no server is named, or it does not answer, or refuses."""
    url = PREFECT_API_URL.value()
    if not url:
        raise OrchestratorError(f"no Prefect server is named: set {URL_VARIABLE}, such as http://127.0.0.1:4200/api")
    try:
        with get_client(sync_client=True) as client:
            yield client
    except PrefectHTTPStatusError as error:
        refused = error.response.status_code in {401, 403}
        remedy = f": set {AUTH_VARIABLE} to the server's" if refused else f": {error.response.text[:300]}"
        raise OrchestratorError(f"Prefect at {url} answers {error.response.status_code}{remedy}") from None
    except httpx.HTTPError as error:
        raise OrchestratorError(
            f"Prefect at {url} does not answer ({error}): start it, or set {URL_VARIABLE}"
        ) from None


def show(changes: Sequence[Change]) -> None:
    for change in changes:
        print(f"{change.what:<9}  {change.name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Put the automations on the server, or make ready for its start."""
    parser = argparse.ArgumentParser(prog="python -m deployments.automations", description=__doc__)
    parser.add_argument(
        "--before-server",
        action="store_true",
        help="run on the server's machine before it starts: what happened while it was down is not held against running runs",
    )
    if parser.parse_args(arguments).before_server:
        from deployments.outage import give_time

        print(f"{give_time()} runs have time to give the next sign of life")
        return 0
    with server() as client:
        show(put(automations(start_seconds(client)), PREFIX, client))
    return 0


def _silent(name: str, description: str, after: set[str], seconds: int, action: ChangeFlowRunState) -> AutomationCore:
    """Something happens to a run of which nothing is heard for so long after one of these events."""
    return AutomationCore(
        name=f"{PREFIX}{name}",
        description=description,
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after=after,
            expect={"prefect.flow-run.*", WAITING},
            match={"prefect.resource.id": "prefect.flow-run.*"},  # pyright: ignore[reportArgumentType] - it takes what the server takes
            match_related=of_deployments(),
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[action],
    )


def _becomes(state: StateType, message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=state, name=state.value.capitalize(), message=message, force=False)


def _all(client: SyncPrefectClient) -> Iterator[Automation]:
    offset = 0
    while page := client.read_automations(limit=PAGE, offset=offset):
        yield from page
        offset += len(page)


def _put(wanted: AutomationCore, found: list[Automation], client: SyncPrefectClient) -> Change:
    if not found:
        client.create_automation(wanted)
        return Change(wanted.name, "created")
    _remove(found[1:], client)
    if _content(found[0]) == _content(wanted):
        return Change(wanted.name, "unchanged")
    client.update_automation(found[0].id, wanted)
    return Change(wanted.name, "updated")


def _remove(automations: Sequence[Automation], client: SyncPrefectClient) -> None:
    for automation in automations:
        client.delete_automation(automation.id)


def _content(automation: AutomationCore) -> Any:
    """What it does, without the ids and marks that a server adds."""
    return _sorted(automation.model_dump(include={"name", "description", "enabled", "trigger", "actions"}))


def _sorted(value: Any) -> Any:
    match value:
        case dict():
            return {key: _sorted(each) for key, each in value.items() if key != "id"}
        case list() | tuple():
            return [_sorted(each) for each in value]
        case set():
            return sorted(value)
        case UUID():
            return str(value)
    return value


if __name__ == "__main__":
    run: Callable[[], int] = main
    sys.exit(exit_code_of(run, debug=False))
