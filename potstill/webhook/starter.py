"""Starts a run once enough has landed, and tells Prefect's automations of what landed; never within a request.

Prefect may be away: what is owed to it stands in the inbox, and is asked for again, later and later.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from potstill.errors import InboxError, OrchestratorError
from potstill.inbox import Inbox
from potstill.inbox.starts import (
    Start,
    decide_retry,
    decide_start,
    is_due,
    last_start,
    note_announced,
    note_start,
    num_in_vain,
    pending_start,
    unannounced,
)
from potstill.prefect_api import PrefectApi
from potstill.recipe import Inbox as Debounce

FLOW = "redistill"
EVENT = "potstill.prompts.landed"
TAG = "webhook"
NOT_BEGUN = {"SCHEDULED", "PENDING"}
GOING_ON = {"RUNNING", "PAUSED", "CANCELLING"}
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
AGAIN_SECONDS = 600.0
"""So long after a start that took nothing the next one comes, where `min_interval_seconds` is shorter."""
RETRIES = {"CRASHED": 3, "FAILED": 1}
"""So often a run that ended so is started again: it may have taken prompts that no later webhook brings."""
BROKEN_OFF = {"CANCELLED": "cancelled", "GONE": "deleted"}
"""What somebody did to a run, which is not undone."""
VAIN = 2
"""After so many starts that took nothing of what waits, another one is likely to do no better."""
LOOK_SECONDS = 30.0
"""How often the last run is looked at."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
JOIN_SECONDS = 2.0

log = logging.getLogger(__name__)


class Watch:
    """One recipe's inbox, and what Prefect is to be told of it.

    Args:
        api: makes the client, for each pass: the environment may name no server.
    """

    def __init__(self, inbox: Inbox, debounce: Debounce, api: Callable[[], PrefectApi]) -> None:
        self.recipe = inbox.path.name
        self._inbox = inbox
        self._debounce = debounce
        self._api = api
        self._pause = 0.0
        self._next_at = 0.0
        self._is_troubled = False
        self._settled: str | None = None
        self._look_again_at = 0.0

    def look(self) -> None:
        """One pass; a failure is said once, and the next passes leave Prefect alone for a while."""
        if time.monotonic() < self._next_at:
            return
        troubles = [said for said in (self._try(self._start_run), self._try(self._announce)) if said]
        if troubles:
            self._pause = min(LONGEST_PAUSE_SECONDS, self._pause * 2 or FIRST_PAUSE_SECONDS)
            self._next_at = time.monotonic() + self._pause
            if not self._is_troubled:
                log.warning("%s: prompts are kept, Prefect is told later: %s", self.recipe, troubles[0])
        else:
            if self._is_troubled:
                log.info("%s: goes on", self.recipe)
            self._pause = 0.0
        self._is_troubled = bool(troubles)

    @staticmethod
    def _try(step: Callable[[], None]) -> str:
        try:
            step()
        except (OrchestratorError, InboxError) as error:
            return str(error)
        return ""

    def _start_run(self) -> None:
        start = pending_start(self._inbox)
        if start is None:
            start = self._due() if is_due(self._inbox, self._debounce) else self._retry()
        if start is None:
            return
        api = self._api()
        [deployment, *_] = api.find(
            "deployments", deployments={"name": {"any_": [self.recipe]}}, flows={"name": {"any_": [FLOW]}}
        ) or [None]
        if deployment is None:
            raise OrchestratorError(f"no deployment {FLOW}/{self.recipe} at {api.url}: run `prefect deploy --all`")
        run = api.post(
            f"/deployments/{deployment['id']}/create_flow_run", {"idempotency_key": start.key, "tags": [TAG]}
        )
        note_start(self._inbox, start.key, run["id"])
        log.info("%s: started run %s for %d prompts", self.recipe, run["id"], start.num_prompts)

    def _due(self) -> Start | None:
        """A start for what waits."""
        if self._is_one_queued():
            return None
        start = decide_start(self._inbox, self._debounce, is_over=self._is_last_over())
        if start is not None and (vain := num_in_vain(self._inbox)) >= VAIN:
            said = "%s: %d runs took nothing of what waits in %s: see their logs, and whether their POTSTILL_HOME is this one"
            log.warning(said, self.recipe, vain, self._inbox.path)
        return start

    def _retry(self) -> Start | None:
        """The last start once more, where its run crashed or failed a while ago: what it had taken waits for no webhook."""
        last = last_start(self._inbox)
        if last is None or last.run_id is None or last.key == self._settled or time.monotonic() < self._look_again_at:
            return None
        self._look_again_at = time.monotonic() + LOOK_SECONDS
        [run] = self._api().find("flow_runs", flow_runs={"id": {"any_": [last.run_id]}}) or [{"state_type": "GONE"}]
        state = run["state_type"]
        if state in NOT_BEGUN | GOING_ON:
            return None
        if state in RETRIES:
            ended = datetime.fromisoformat(run["end_time"] or run["expected_start_time"])
            pause = max(self._debounce.min_interval_seconds, AGAIN_SECONDS)
            if (datetime.now(UTC) - ended).total_seconds() < pause:
                return None
            if (start := decide_retry(self._inbox, last, RETRIES[state])) is not None:
                log.warning("%s: run %s is %s: started again", self.recipe, last.run_id, state)
                return start
            said = "%s: run %s is %s, and is not started again: mend it, then `prefect deployment run %s/%s`"
            log.error(said, self.recipe, last.run_id, state, FLOW, self.recipe)
        elif state in BROKEN_OFF and self._inbox.num_waiting() < last.num_prompts:
            said = "%s: run %s had taken prompts and was %s: the next run has them, or `prefect deployment run %s/%s`"
            log.warning(said, self.recipe, last.run_id, BROKEN_OFF[state], FLOW, self.recipe)
        self._settled = last.key
        return None

    def _is_one_queued(self) -> bool:
        """Whether the last run that was started has not begun: then it will take all that has landed."""
        last = last_start(self._inbox)
        if last is None or last.run_id is None:
            return False
        found = self._api().find("flow_runs", flow_runs={"id": {"any_": [last.run_id]}})
        return any(run["state_type"] in NOT_BEGUN for run in found)

    def _is_last_over(self) -> bool:
        """Whether the last run has ended, or is gone: what still waits, it has not taken."""
        last = last_start(self._inbox)
        if last is None or last.run_id is None or time.time() - (last.started_at or 0) < AGAIN_SECONDS:
            return False
        found = self._api().find("flow_runs", flow_runs={"id": {"any_": [last.run_id]}})
        return all(run["state_type"] in ENDED for run in found)

    def _announce(self) -> None:
        landed = unannounced(self._inbox)
        if not landed.num_deliveries:
            return
        name = f"potstill.inbox.{self.recipe}"
        event = {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self._inbox.path.as_uri()}#{landed.last}@{landed.last_at}")),
            "occurred": datetime.now(UTC).isoformat(),
            "event": EVENT,
            "resource": {"prefect.resource.id": name, "prefect.resource.name": self.recipe},
            "payload": {
                "recipe": self.recipe,
                "deliveries": landed.num_deliveries,
                "prompts": landed.num_prompts,
                "waiting": self._inbox.num_waiting(),
            },
        }
        self._api().post("/events", [event])
        note_announced(self._inbox, landed.last)


class Starter:
    """Looks at every inbox in a thread of its own, until `stop`."""

    def __init__(
        self, inboxes: Mapping[str, tuple[Inbox, Debounce]], api: Callable[[], PrefectApi], poll_seconds: float
    ) -> None:
        self._watches = [Watch(inbox, debounce, api) for inbox, debounce in inboxes.values()]
        self._poll_seconds = poll_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="starter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """A call that waits for Prefect is left behind: what it was for is on the disk."""
        self._stopping.set()
        self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(self._poll_seconds):
            for watch in self._watches:
                try:
                    watch.look()
                except Exception:
                    log.exception("%s: a pass over the inbox failed", watch.recipe)
