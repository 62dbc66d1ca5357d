"""What is asked of a ledger without writing."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import orjson
from sqlalchemy import BigInteger, func, select

from potstill.ledger.database import Database, chunks
from potstill.ledger.entries import AccountState, Answer, KeyCost, Standing
from potstill.ledger.schema import PICO, accounts, answers, attempts, given_up
from potstill.ledger.spend import BILLED, SpendRow
from potstill.llm.messages import Reply
from potstill.records import Usage


class Reader:
    """Reads one ledger; its statements are built once. Each query sees what is committed when it begins."""

    def __init__(self, database: Database) -> None:
        self._database = database
        among = database.among
        both = select(answers, attempts).join(attempts, attempts.c.id == answers.c.attempt_id)
        self._answers = both.where(among(answers.c.answer_key))
        self._answered = select(answers.c.answer_key).where(among(answers.c.answer_key))
        self._attempts = (
            select(attempts).where(among(attempts.c.answer_key)).order_by(attempts.c.started_at, attempts.c.id)
        )
        is_batched = (attempts.c.status == "in_flight") & attempts.c.batch.is_not(None) & among(attempts.c.answer_key)
        self._holding = select(attempts.c.batch).where(is_batched).distinct()
        is_refused = (attempts.c.status == "refused") & among(attempts.c.answer_key)
        is_given_up = among(given_up.c.answer_key)
        self._refused = select(attempts.c.answer_key).where(is_refused)
        self._given_up = select(given_up).where(is_given_up)

    def find_answers(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The stored answers among these keys."""
        found: dict[str, Answer] = {}
        with self._database.reading() as connection:
            for chunk in chunks(keys):
                rows = connection.execute(self._answers, self._database.keys_parameter(chunk))
                found |= {row[0]: _answer(row._mapping) for row in rows}
        return found

    def look_up(self, keys: Iterable[str]) -> Standing:
        """What is still to be asked among these keys, and what was refused or given up for good."""
        missing: set[str] = set()
        refused: set[str] = set()
        with self._database.reading() as connection:
            for chunk in chunks(keys):
                lacking = set(chunk) - set(connection.scalars(self._answered, self._database.keys_parameter(chunk)))
                if lacking:
                    parameter = self._database.keys_parameter(list(lacking))
                    refused |= set(connection.scalars(self._refused, parameter))
                    refused |= set(connection.scalars(self._given_up, parameter))
                missing |= lacking
        return Standing(missing - refused, refused)

    def is_claimed(self, key: str) -> bool:
        """Whether a request for this key is in flight."""
        query = select(attempts.c.id).where(attempts.c.answer_key == key, attempts.c.status == "in_flight").limit(1)
        with self._database.reading() as connection:
            return connection.scalar(query) is not None

    def batches_holding(self, keys: Iterable[str]) -> set[str]:
        """The tokens of the batches that hold a request in flight for one of these keys."""
        found: set[str] = set()
        with self._database.reading() as connection:
            for chunk in chunks(keys):
                found |= set(connection.scalars(self._holding, self._database.keys_parameter(chunk)))
        return found

    def costs(self, keys: Iterable[str]) -> dict[str, KeyCost]:
        """What each of these keys has cost in all its attempts, whichever run made them."""
        found: dict[str, KeyCost] = {}
        with self._database.reading() as connection:
            for chunk in chunks(keys):
                for row in connection.execute(self._attempts, self._database.keys_parameter(chunk)):
                    before = found.get(row.answer_key)
                    found[row.answer_key] = _first(row) if before is None else _added(before, row)
                for row in connection.execute(self._given_up, self._database.keys_parameter(chunk)):
                    found[row.answer_key] = found[row.answer_key]._replace(refused=True, given_up=row.reason)
        return found

    def account(self, name: str) -> AccountState:
        """What an account has spent and reserved."""
        with self._database.reading() as connection:
            row = connection.execute(select(accounts).where(accounts.c.name == name)).one_or_none()
        return AccountState() if row is None else AccountState(row.spent_usd, row.reserved_usd)

    def spend(self, account: str) -> list[SpendRow]:
        """What was spent at the expense of a run or a month, by purpose, model and status."""
        names = ("purpose", "model", "status")
        tokens = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")
        usd = (attempts.c.cost_usd, attempts.c.bound_usd)
        query = (
            select(
                *(attempts.c[name] for name in names),
                func.count().label("attempts"),
                *(func.sum(attempts.c[name]).label(name) for name in tokens),
                *(func.coalesce(func.sum(column.cast(BigInteger)), 0).label(column.name) for column in usd),
            )
            .where((attempts.c.run == account) | (attempts.c.month == account))
            .group_by(*(attempts.c[name] for name in names))
            .order_by(*(attempts.c[name] for name in names))
        )
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return [_spend_row(row) for row in rows]


def _spend_row(row: Any) -> SpendRow:
    """PostgreSQL's sums of whole numbers are no `int`."""
    return SpendRow(
        purpose=row.purpose,
        model=row.model,
        status=row.status,
        attempts=row.attempts,
        input_tokens=int(row.input_tokens),
        cached_input_tokens=int(row.cached_input_tokens),
        output_tokens=int(row.output_tokens),
        reasoning_tokens=int(row.reasoning_tokens),
        cost_usd=int(row.cost_usd) * PICO,
        bound_usd=int(row.bound_usd) * PICO,
    )


def _first(row: Any) -> KeyCost:
    return _added(KeyCost(), row)


def _added(before: KeyCost, row: Any) -> KeyCost:
    is_unknown = row.status == "unknown"
    is_refusal = row.status == "refused"
    return KeyCost(
        attempts=before.attempts + 1,
        input_tokens=before.input_tokens + row.input_tokens,
        cached_input_tokens=before.cached_input_tokens + row.cached_input_tokens,
        output_tokens=before.output_tokens + row.output_tokens,
        reasoning_tokens=before.reasoning_tokens + row.reasoning_tokens,
        cost_usd=before.cost_usd + (row.cost_usd or Decimal(0)),
        billed=before.billed + (row.status in BILLED),
        unknown=before.unknown + is_unknown,
        unknown_usd=before.unknown_usd + (row.bound_usd if is_unknown else Decimal(0)),
        # the order is a clock's, which may be set back: one refusal is enough, as it is for `look_up`
        refused=before.refused or is_refusal,
        last_error=before.last_error if before.refused and not is_refusal else row.error,
    )


def _answer(row: Any) -> Answer:
    message = orjson.loads(row[answers.c.message])
    usage = Usage.model_construct(
        input=row[attempts.c.input_tokens],
        cached_input=row[attempts.c.cached_input_tokens],
        cache_write=row[attempts.c.cache_write_tokens],
        output=row[attempts.c.output_tokens],
        reasoning=row[attempts.c.reasoning_tokens],
    )
    reply = Reply(message, message.get("content") or "", row[answers.c.finish_reason], usage)
    return Answer(reply, row[attempts.c.seconds] or 0.0)
