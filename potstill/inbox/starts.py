"""Which runs were started for what has landed: decided on disk first, so that a crash starts no run twice."""

import hashlib
import time
from typing import NamedTuple

from potstill.inbox.inbox import Inbox, Landed
from potstill.recipe import Inbox as Debounce

RETRY = "-retry-"


class Start(NamedTuple):
    """A run that was decided on."""

    key: str
    """The idempotency key: the same for the same deliveries."""
    num_prompts: int
    decided_at: float
    started_at: float | None
    """None until the orchestrator has it."""
    run_id: str | None


def pending_start(inbox: Inbox) -> Start | None:
    """A start that was decided on and of which nobody knows whether the orchestrator has it."""
    last = last_start(inbox)
    return last if last is not None and last.started_at is None else None


def last_start(inbox: Inbox) -> Start | None:
    with inbox.database.reading() as connection:
        found = connection.execute(
            "SELECT key, num_prompts, decided_at, started_at, run_id FROM starts ORDER BY number DESC LIMIT 1"
        ).fetchone()
    return None if found is None else Start(*found)


def is_due(inbox: Inbox, debounce: Debounce, now: float | None = None) -> bool:
    """Whether enough has landed, and the last start lies long enough back."""
    if inbox.num_waiting() < debounce.min_new_prompts:
        return False
    last = last_start(inbox)
    # a start in the future is a clock that was set back: it holds nobody for longer than the interval
    elapsed = abs((time.time() if now is None else now) - (last.started_at or last.decided_at)) if last else None
    return elapsed is None or elapsed >= debounce.min_interval_seconds


def decide_start(inbox: Inbox, debounce: Debounce, now: float | None = None, *, is_over: bool = False) -> Start | None:
    """Write down that a run is to start for what waits; None where none is due, or was for the same deliveries.

    `is_over` says that the last run has ended: where the same deliveries still wait, it has not taken them, and another is
    due. Of two receivers on one inbox, one decides.
    """
    with inbox.database.transaction() as connection:
        if not is_due(inbox, debounce, now):
            return None
        digest = hashlib.sha256(inbox.path.name.encode())
        num_prompts = 0
        waiting = "SELECT id_sha256, num_prompts FROM deliveries WHERE file IS NOT NULL ORDER BY seq"
        for identity, count in connection.execute(waiting):
            digest.update(bytes.fromhex(identity))
            num_prompts += count
        key = f"potstill-inbox-{inbox.path.name}-{digest.hexdigest()[:32]}"
        of_same = "SELECT COUNT(*) FROM starts WHERE key = ? OR key LIKE ? || '-again-%'"
        [before] = connection.execute(of_same, (key, key)).fetchone()
        start = Start(
            f"{key}-again-{before}" if before and is_over else key,
            num_prompts,
            time.time() if now is None else now,
            None,
            None,
        )
        row = (start.key, start.num_prompts, start.decided_at)
        added = connection.execute("INSERT OR IGNORE INTO starts (key, num_prompts, decided_at) VALUES (?, ?, ?)", row)
        return start if added.rowcount else None


def decide_retry(inbox: Inbox, failed: Start, most: int) -> Start | None:
    """Write down that the run of a start is tried again; None where it was `most` times, or where another start followed."""
    first, _, number = failed.key.partition(RETRY)
    done = int(number or 0)
    with inbox.database.transaction() as connection:
        [latest] = connection.execute("SELECT key FROM starts ORDER BY number DESC LIMIT 1").fetchone()
        if latest != failed.key or done >= most:
            return None
        start = Start(f"{first}{RETRY}{done + 1}", failed.num_prompts, time.time(), None, None)
        row = (start.key, start.num_prompts, start.decided_at)
        connection.execute("INSERT INTO starts (key, num_prompts, decided_at) VALUES (?, ?, ?)", row)
    return start


def num_in_vain(inbox: Inbox) -> int:
    """How many starts that the orchestrator has have come and gone since what has waited longest landed."""
    with inbox.database.reading() as connection:
        [count] = connection.execute(
            "SELECT COUNT(*) FROM starts WHERE started_at IS NOT NULL"
            " AND decided_at > (SELECT MIN(landed_at) FROM deliveries WHERE file IS NOT NULL)"
        ).fetchone()
    return count


def note_start(inbox: Inbox, key: str, run_id: str, now: float | None = None) -> None:
    """The orchestrator has the run of a start."""
    with inbox.database.transaction() as connection:
        moment = time.time() if now is None else now
        connection.execute("UPDATE starts SET started_at = ?, run_id = ? WHERE key = ?", (moment, run_id, key))


def unannounced(inbox: Inbox) -> Landed:
    """The deliveries that no event has told of, sealed ones included."""
    with inbox.database.reading() as connection:
        found = connection.execute(
            "SELECT COUNT(*), COALESCE(SUM(num_prompts), 0), COALESCE(MAX(seq), 0), COALESCE(MAX(landed_at), 0)"
            " FROM deliveries WHERE seq > (SELECT seq FROM announced)"
        )
        return Landed(*found.fetchone())


def note_announced(inbox: Inbox, last: int) -> None:
    """An event has told of the deliveries up to this one."""
    with inbox.database.transaction() as connection:
        connection.execute("UPDATE announced SET seq = ?", (last,))
