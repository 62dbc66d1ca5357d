"""The provider's batches: each stands here before it is handed in, and until its results are in the ledger.

The requests of a batch are attempts in flight like others, but they outlive their process: they stay in flight, and
claimed, until somebody collects the batch.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import orjson
from sqlalchemy import BigInteger, ColumnElement, Connection, delete, func, insert, select, update

from potstill.ledger.database import Database
from potstill.ledger.entries import AttemptPlan
from potstill.ledger.owners import states_of
from potstill.ledger.schema import attempts, batches, prices
from potstill.llm.pricing import Rates

BatchStatus = Literal["submitting", "running", "ended"]
"""submitting: nobody knows yet whether the provider has it; ended: all its results are in the ledger."""


class BatchRow(NamedTuple):
    """One batch, as the ledger knows it."""

    token: str
    """Ours: it is in the provider's copy too."""
    batch_id: str | None
    """The provider's; None where its answer never came."""
    provider: str
    base_url: str
    run: str
    status: BatchStatus
    num_requests: int
    created_at: float


class BatchOrder(NamedTuple):
    """A batch, and what it was handed in for."""

    batch: BatchRow
    model: str
    month: str | None
    """Names the account of the recipe's month; None where no recipe asked."""


class BatchedAttempt(NamedTuple):
    """One request of a batch that is in flight still."""

    attempt_id: int
    plan: AttemptPlan
    """As it was begun, at the rates of that time."""


COLUMNS = tuple(batches.c[name] for name in BatchRow._fields)
OLDEST_FIRST = (batches.c.created_at, batches.c.token)


def record(connection: Connection, batch: BatchRow, owner_id: int) -> None:
    """Write down a batch that is about to be handed in."""
    connection.execute(insert(batches).values(**batch._asdict(), owner=owner_id))


def update_batch(connection: Connection, token: str, *, status: BatchStatus, batch_id: str | None = None) -> None:
    values = {"status": status} | ({} if batch_id is None else {"batch_id": batch_id})
    connection.execute(update(batches).where(batches.c.token == token).values(values))


def closed_too_early(connection: Connection, token: str) -> list[Any]:
    """The requests (id, run, month, bound_pico) of a batch that was closed as never handed in."""
    bound = attempts.c.bound_usd.cast(BigInteger).label("bound_pico")
    query = (
        select(attempts.c.id, attempts.c.run, attempts.c.month, bound)
        .join(batches, batches.c.token == attempts.c.batch)
        .where(batches.c.token == token, batches.c.status == "ended", attempts.c.status == "failed")
    )
    return list(connection.execute(query))


def forget(connection: Connection, token: str) -> None:
    """Take back a batch that holds nothing."""
    connection.execute(delete(batches).where(batches.c.token == token))


def count_requests(connection: Connection, token: str, number: int) -> None:
    """How many requests a batch has come to hold."""
    connection.execute(update(batches).where(batches.c.token == token).values(num_requests=number))


def open_batches(connection: Connection, provider: str, base_url: str) -> list[BatchRow]:
    """What has not ended at this endpoint, the oldest first, whichever run has handed it in."""
    query = select(*COLUMNS).where(_is_open(provider, base_url)).order_by(*OLDEST_FIRST)
    return [BatchRow(*row) for row in connection.execute(query)]


def open_orders(connection: Connection, provider: str, base_url: str) -> list[BatchOrder]:
    """The same, with what each was handed in for: all requests of a batch are one run's, which has an index."""
    of_batch = (attempts.c.run == batches.c.run) & (attempts.c.batch == batches.c.token)
    query = (
        select(*COLUMNS, func.max(attempts.c.model).label("model"), func.max(attempts.c.month).label("month"))
        .join(attempts, of_batch)
        .where(_is_open(provider, base_url))
        .group_by(batches.c.token)
        .order_by(*OLDEST_FIRST)
    )
    rows = connection.execute(query)
    return [BatchOrder(BatchRow(*row[: len(COLUMNS)]), row.model, row.month) for row in rows]


def known_ids(connection: Connection) -> set[str]:
    """The provider's ids of all batches that were ever handed in."""
    return set(connection.scalars(select(batches.c.batch_id).where(batches.c.batch_id.is_not(None))))


def claim(database: Database, connection: Connection, token: str, owner_id: int) -> bool:
    """Become the one who collects a batch; False where another living process does."""
    holder = connection.scalar(select(batches.c.owner).where(batches.c.token == token))
    assert holder is not None
    if holder != owner_id and not states_of(connection, {holder})[holder].is_dead(database.now(connection)):
        return False
    connection.execute(update(batches).where(batches.c.token == token).values(owner=owner_id))
    return True


def in_flight(connection: Connection, token: str) -> Iterator[BatchedAttempt]:
    """The requests of a batch that no result has closed, in the order in which they were begun.

    They are `unknown` where somebody took it for lost.
    """
    names = ("id", "answer_key", "prompt_id", "run", "month", "purpose", "provider", "model")
    query = (
        select(*(attempts.c[name] for name in names), attempts.c.bound_usd, prices.c.content.label("price"))
        .join(prices, prices.c.id == attempts.c.price)
        .where(attempts.c.batch == token, attempts.c.status.in_(["in_flight", "unknown"]))
        .order_by(attempts.c.id)
    )
    rates: dict[str, Rates] = {}
    for row in connection.execute(query):
        if row.price not in rates:
            rates[row.price] = Rates.from_snapshot(orjson.loads(row.price))
        plan = AttemptPlan(
            answer_key=row.answer_key,
            prompt_id=row.prompt_id,
            run=row.run,
            purpose=row.purpose,
            provider=row.provider,
            model=row.model,
            bound_usd=row.bound_usd,
            rates=rates[row.price],
            month=row.month,
        )
        yield BatchedAttempt(row.id, plan)


def _is_open(provider: str, base_url: str) -> ColumnElement[bool]:
    return (batches.c.status != "ended") & (batches.c.provider == provider) & (batches.c.base_url == base_url)
