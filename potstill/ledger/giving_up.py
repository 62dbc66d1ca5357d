"""Prompts that a teacher which answers others never gives a usable answer to: they are put aside, and stop no run."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, select, update

from potstill.ledger.database import Database
from potstill.ledger.schema import attempts, given_up

JUST_BEFORE_SECONDS = 600.0
"""An endpoint that answered another prompt so long before the first attempt was in order."""
RUNS = 3
"""So many times the attempts of one run, where no attempt got as far as a reply: a later run may be luckier."""


def give_up(
    database: Database, connection: Connection, key: str, said: str, num_attempts: int, *, is_failing: bool
) -> bool:
    """Put a key aside if enough was tried; whether it is.

    Enough is `num_attempts` replies that were billed and cannot be used, or `RUNS` times as many attempts of any kind.
    In both cases the endpoint must have answered other prompts meanwhile: else the fault is its own. Answers that began
    after a second attempt say so, whatever came later: no outage can have begun between them. Earlier ones say so only
    of an endpoint that is not failing now: `is_failing` says that so many others fail that it may be down.
    """
    of_key = select(attempts).where(attempts.c.answer_key == key).order_by(attempts.c.started_at)
    tried = [row for row in connection.execute(of_key) if _counts(row)]
    is_paid_for = sum(row.status == "unusable" for row in tried) >= num_attempts
    if not is_paid_for and len(tried) < RUNS * num_attempts:
        return False
    since = tried[min(1, len(tried) - 1)].started_at
    if not is_failing:
        since = tried[0].started_at - (JUST_BEFORE_SECONDS if is_paid_for else 0)
    if not _has_answered_since(connection, tried[-1], since):
        return False
    reason = "empty" if said.startswith("empty") else f"error: {len(tried)} attempts: {said}"
    connection.execute(database.insert_if_new(given_up), {"answer_key": key, "reason": reason})
    return True


def take_back(database: Database, connection: Connection, keys: Sequence[str]) -> None:
    """Let keys that were refused or put aside be asked for again."""
    parameter = database.keys_parameter(list(keys))
    is_refused = (attempts.c.status == "refused") & database.among(attempts.c.answer_key)
    connection.execute(update(attempts).where(is_refused).values(status="failed"), parameter)
    connection.execute(delete(given_up).where(database.among(given_up.c.answer_key)), parameter)


def _counts(row: Any) -> bool:
    """A refusal of the pace says nothing of the prompt, nor does what was cancelled, or never got as far as a model."""
    has_left = row.status != "failed" or row.http_status is not None
    is_cancelled = (row.error or "").startswith("cancelled")
    return row.status in {"unusable", "failed", "unknown"} and row.http_status != 429 and has_left and not is_cancelled


def _has_answered_since(connection: Connection, like: Any, seconds: float) -> bool:
    is_alike = (attempts.c.provider == like.provider) & (attempts.c.model == like.model)
    is_answered = (attempts.c.status == "answered") & (attempts.c.started_at > seconds)
    return connection.scalar(select(attempts.c.id).where(is_alike & is_answered).limit(1)) is not None
