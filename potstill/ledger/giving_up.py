"""Prompts that a teacher which answers others never gives a usable answer to: they are put aside, and stop no run."""

from typing import Any

from sqlalchemy import Connection, select

from potstill.ledger.database import Database
from potstill.ledger.schema import attempts, given_up

JUST_BEFORE_SECONDS = 600.0
"""An endpoint that answered another prompt so long before the first attempt was in order."""
RUNS = 3
"""So many times the attempts of one run, where no attempt got as far as a reply: a later run may be luckier."""


def give_up(database: Database, connection: Connection, key: str, said: str, num_attempts: int) -> bool:
    """Put a key aside if enough was tried; whether it is.

    Enough is `num_attempts` replies that were billed and cannot be used, or `RUNS` times as many attempts of any kind.
    In both cases the endpoint must have answered other prompts meanwhile: else the fault is its own.
    """
    tried = [row for row in connection.execute(select(attempts).where(attempts.c.answer_key == key)) if _counts(row)]
    if not tried:
        return False
    first = min(row.started_at for row in tried)
    if sum(row.status == "unusable" for row in tried) >= num_attempts:
        first -= JUST_BEFORE_SECONDS
    elif len(tried) < RUNS * num_attempts:
        return False
    if not _has_answered_since(connection, tried[-1], first):
        return False
    reason = "empty" if said.startswith("empty") else f"error: {len(tried)} attempts: {said}"
    connection.execute(database.insert_if_new(given_up), {"answer_key": key, "reason": reason})
    return True


def _counts(row: Any) -> bool:
    """A refusal of the pace says nothing of the prompt, nor does what was cancelled, or never got as far as a model."""
    has_left = row.status != "failed" or row.http_status is not None
    is_cancelled = (row.error or "").startswith("cancelled")
    return row.status in {"unusable", "failed", "unknown"} and row.http_status != 429 and has_left and not is_cancelled


def _has_answered_since(connection: Connection, like: Any, seconds: float) -> bool:
    is_alike = (attempts.c.provider == like.provider) & (attempts.c.model == like.model)
    is_answered = (attempts.c.status == "answered") & (attempts.c.started_at > seconds)
    return connection.scalar(select(attempts.c.id).where(is_alike & is_answered).limit(1)) is not None
