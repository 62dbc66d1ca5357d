"""Ledgers of an earlier version become this one's: what was paid for stays paid for."""

from sqlalchemy import Connection, inspect, select, text, update

from potstill.errors import UsageError
from potstill.ledger.schema import SCHEMA_VERSION, meta, metadata

FROM_VERSION_1 = (
    "INSERT INTO accounts (name, spent_usd, reserved_usd) SELECT run, spent_usd, reserved_usd FROM runs",
    "INSERT INTO owners (id, process, lease_until) SELECT min(id), owner, 0 FROM attempts_1 GROUP BY owner",
    "INSERT INTO prices (id, content) SELECT min(id), price FROM attempts_1 GROUP BY price",
    """
    INSERT INTO attempts (id, answer_key, prompt_id, run, purpose, provider, model, status, http_status, error,
        input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
        cost_usd, bound_usd, price, owner, started_at, seconds)
    SELECT a.id, a.answer_key, a.prompt_id, a.run, a.purpose, a.provider, a.model, a.status, a.http_status, a.error,
        a.input_tokens, a.cached_input_tokens, 0, a.output_tokens, a.reasoning_tokens,
        a.cost_usd, a.bound_usd, prices.id, owners.id, a.started_at, a.seconds
    FROM attempts_1 a JOIN prices ON prices.content = a.price JOIN owners ON owners.process = a.owner
    """,
    """
    INSERT INTO answers (answer_key, attempt_id, message, finish_reason)
    SELECT answer_key, attempt_id, message, finish_reason FROM answers_1
    """,
    "DROP TABLE answers_1",
    "DROP TABLE attempts_1",
    "DROP TABLE runs",
)
CLOSE_IN_FLIGHT = (
    "UPDATE runs SET spent_usd = spent_usd + reserved_usd, reserved_usd = 0",
    "UPDATE attempts SET status = 'unknown', error = 'in flight when the ledger was migrated' WHERE status = 'in_flight'",
)
"""Version 1 allowed two attempts in flight for one key, which this one's index forbids."""


def migrate(connection: Connection, url: str) -> None:
    """Bring the tables to this version, in the transaction that is open; a new database is left as it is.

    Errors: `UsageError` for a version that this code does not know.
    """
    if not inspect(connection).has_table(meta.name):
        return
    version = connection.scalar(select(meta.c.value).where(meta.c.name == "schema_version"))
    if version in {None, str(SCHEMA_VERSION)}:
        return
    if version == "1" and connection.dialect.name == "sqlite":  # it ran on nothing else
        _rebuild(connection)
    elif version != "2":
        raise UsageError(f"ledger {url}: schema version {version}, this Potstill knows {SCHEMA_VERSION}")
    metadata.create_all(connection)  # version 2 has no table of what was given up
    connection.execute(update(meta).where(meta.c.name == "schema_version").values(value=str(SCHEMA_VERSION)))


def _rebuild(connection: Connection) -> None:
    for statement in CLOSE_IN_FLIGHT:
        connection.execute(text(statement))
    for index in ("attempts_by_key", "attempts_by_run", "attempts_by_status"):
        connection.execute(text(f"DROP INDEX {index}"))
    for table in ("answers", "attempts"):
        connection.execute(text(f"ALTER TABLE {table} RENAME TO {table}_1"))
    metadata.create_all(connection)
    for statement in FROM_VERSION_1:
        connection.execute(text(statement))
