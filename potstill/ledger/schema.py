"""The tables of the ledger: SQLite is the embedded default, PostgreSQL takes the same."""

from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, Column, Dialect, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text
from sqlalchemy.types import TypeDecorator

SCHEMA_VERSION = 3
PICO = Decimal(10) ** -12

metadata = MetaData()
Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite's own row number, which has 64 bits as well


def to_pico(usd: Decimal) -> int:
    """USD as whole pico-dollars, which a database adds exactly."""
    return int(usd.scaleb(12).to_integral_value())


class Usd(TypeDecorator[Decimal]):
    """Decimal USD, stored as whole pico-dollars."""

    impl = BigInteger
    cache_ok = True

    def coerce_compared_value(self, op: Any, value: Any) -> "Usd":  # noqa: ARG002 - SQLAlchemy's signature
        return self

    def process_bind_param(self, value: Any, dialect: Dialect) -> int | None:  # noqa: ARG002 - SQLAlchemy's signature
        return None if value is None else to_pico(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:  # noqa: ARG002 - same
        return None if value is None else int(value) * PICO


meta = Table(
    "meta",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", String, nullable=False),
)

accounts = Table(
    "accounts",
    metadata,
    Column("name", String, primary_key=True),  # a run, or a recipe's month: what a cap is compared with
    Column("spent_usd", Usd, nullable=False),  # known costs, and the upper bound of unknown ones
    Column("reserved_usd", Usd, nullable=False),  # upper bounds of what is in flight
)

owners = Table(
    "owners",
    metadata,
    Column("id", Id, primary_key=True),
    Column("process", String, nullable=False),  # potstill.owner.Owner as JSON
    Column("lease_until", Float, nullable=False),  # seconds since the epoch, by the database's clock where it has one
)

prices = Table(
    "prices",
    metadata,
    Column("id", Id, primary_key=True),
    Column("content", String, nullable=False, unique=True),  # Rates.snapshot() as JSON
)

batches = Table(
    "batches",
    metadata,
    Column("token", String, primary_key=True),  # ours, sent along, so that a batch whose id was lost is found again
    Column("batch_id", String),  # the provider's; NULL until it has said it
    Column("provider", String, nullable=False),
    Column("base_url", String, nullable=False),
    Column("run", String, nullable=False),
    Column("status", String, nullable=False),  # submitting, running, ended
    Column("num_requests", Integer, nullable=False),
    Column("owner", ForeignKey("owners.id"), nullable=False),  # who submits or collects it
    Column("created_at", Float, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", Id, primary_key=True),  # the owner's id and a number of its own
    Column("answer_key", String, nullable=False),
    Column("prompt_id", String, nullable=False),
    Column("run", String, ForeignKey("accounts.name"), nullable=False),
    Column("month", String, ForeignKey("accounts.name")),
    Column("purpose", String, nullable=False),  # potstill.ledger.entries.Purpose
    Column("provider", String, nullable=False),
    Column("model", String, nullable=False),
    Column("status", String, nullable=False),  # potstill.ledger.entries.Status
    Column("http_status", Integer),
    Column("error", Text),
    Column("input_tokens", Integer, nullable=False),
    Column("cached_input_tokens", Integer, nullable=False),
    Column("cache_write_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("reasoning_tokens", Integer, nullable=False),
    Column("cost_usd", Usd),  # NULL while in flight, and for ever where nobody knows
    Column("bound_usd", Usd, nullable=False),  # what it cannot exceed
    Column("price", ForeignKey("prices.id"), nullable=False),  # the rates that apply, tiers included
    Column("owner", ForeignKey("owners.id"), nullable=False),
    Column("batch", ForeignKey("batches.token")),  # NULL for a request of its own
    Column("started_at", Float, nullable=False),
    Column("seconds", Float),
    Index("attempts_by_key", "answer_key"),
    Index("attempts_by_run", "run", "status"),
    Index("attempts_by_month", "month"),
)
Index(
    "attempts_in_flight",
    attempts.c.answer_key,
    unique=True,  # the claim: whoever asks holds the only row in flight
    sqlite_where=attempts.c.status == "in_flight",
    postgresql_where=attempts.c.status == "in_flight",
)

given_up = Table(
    "given_up",
    metadata,
    Column("answer_key", String, primary_key=True),
    Column("reason", Text, nullable=False),  # why the answer is kept from training
)

answers = Table(
    "answers",
    metadata,
    Column("answer_key", String, primary_key=True),
    Column("attempt_id", ForeignKey("attempts.id"), nullable=False),
    Column("message", Text, nullable=False),
    Column("finish_reason", String, nullable=False),
)
