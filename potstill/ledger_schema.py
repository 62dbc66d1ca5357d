"""The tables of the ledger: SQLite is the embedded default, PostgreSQL takes the same."""

from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, Column, Dialect, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text
from sqlalchemy.types import TypeDecorator

SCHEMA_VERSION = 1
PICO = Decimal(10) ** -12

metadata = MetaData()


class Usd(TypeDecorator[Decimal]):
    """Decimal USD, stored as whole pico-dollars, so that a database adds it exactly."""

    impl = BigInteger
    cache_ok = True

    def coerce_compared_value(self, op: Any, value: Any) -> "Usd":  # noqa: ARG002 - SQLAlchemy's signature
        return self

    def process_bind_param(self, value: Any, dialect: Dialect) -> int | None:  # noqa: ARG002 - SQLAlchemy's signature
        return None if value is None else int((value / PICO).to_integral_value())

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:  # noqa: ARG002 - same
        return None if value is None else int(value) * PICO


meta = Table(
    "meta",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", String, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("run", String, primary_key=True),
    Column("spent_usd", Usd, nullable=False),  # known costs, and the upper bound of unknown ones
    Column("reserved_usd", Usd, nullable=False),  # upper bounds of what is in flight
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("answer_key", String, nullable=False),
    Column("prompt_id", String, nullable=False),
    Column("run", String, ForeignKey("runs.run"), nullable=False),
    Column("purpose", String, nullable=False),
    Column("provider", String, nullable=False),
    Column("model", String, nullable=False),
    Column("status", String, nullable=False),  # potstill.ledger.Status
    Column("http_status", Integer),
    Column("error", Text),
    Column("input_tokens", Integer, nullable=False, default=0),
    Column("cached_input_tokens", Integer, nullable=False, default=0),
    Column("output_tokens", Integer, nullable=False, default=0),
    Column("reasoning_tokens", Integer, nullable=False, default=0),
    Column("cost_usd", Usd),  # NULL while in flight, and for ever where nobody knows
    Column("bound_usd", Usd, nullable=False),  # what it cannot exceed
    Column("price", String, nullable=False),  # the rates that were applied, and their source
    Column("owner", String, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("seconds", Float),
    Index("attempts_by_key", "answer_key"),
    Index("attempts_by_run", "run"),
    Index("attempts_by_status", "status"),
)

answers = Table(
    "answers",
    metadata,
    Column("answer_key", String, primary_key=True),
    Column("attempt_id", Integer, ForeignKey("attempts.id"), nullable=False),
    Column("message", Text, nullable=False),
    Column("finish_reason", String, nullable=False),
)
