"""How attempts are begun and settled: so many at once as come together, in one transaction."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import orjson
from sqlalchemy import BigInteger, Connection, bindparam, func, insert, select, update

from potstill.ledger.database import Database
from potstill.ledger.entries import Admission, AttemptPlan, Caps, Settlement
from potstill.ledger.schema import Usd, accounts, answers, attempts, given_up, prices, to_pico
from potstill.llm.pricing import Rates
from potstill.records import Usage
from potstill.texts import one_line

NOTHING = Usage()
ZERO = Decimal(0)
Changes = dict[str, list[int]]
"""By account: what is added to its reserved and to its spent pico-dollars."""


class Begin(NamedTuple):
    """An attempt that wants to leave, under the id that it would get."""

    attempt_id: int
    owner_id: int
    plan: AttemptPlan
    caps: Caps
    batch: str | None = None


class Writer:
    """Writes for one ledger; its statements are built once. Every method runs in the caller's writing transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._prices: dict[Rates, int] = {}
        keys = database.among
        self._answered = select(answers.c.answer_key).where(keys(answers.c.answer_key))
        barring = attempts.c.status.in_(["in_flight", "refused"])
        self._barred = select(attempts.c.answer_key, attempts.c.status).where(barring & keys(attempts.c.answer_key))
        self._given_up = select(given_up.c.answer_key).where(keys(given_up.c.answer_key))
        self._states = select(accounts.c.name, _pico(accounts.c.spent_usd), _pico(accounts.c.reserved_usd)).where(
            keys(accounts.c.name)
        )
        self._open_account = database.insert_if_new(accounts).values(spent_usd=ZERO, reserved_usd=ZERO)
        self._change_account = (
            update(accounts)
            .where(accounts.c.name == bindparam("account"))
            .values(
                reserved_usd=accounts.c.reserved_usd + bindparam("reserved", type_=BigInteger),
                spent_usd=accounts.c.spent_usd + bindparam("spent", type_=BigInteger),
            )
        )
        self._insert = insert(attempts).values({"bound_usd": bindparam("bound_pico", type_=BigInteger)})
        self._close = (
            update(attempts)
            .where(attempts.c.id == bindparam("attempt"))
            .values({"cost_usd": bindparam("cost_pico", type_=BigInteger)})
        )
        self._keep = database.insert_if_new(answers)

    def begin(self, connection: Connection, wanted: Sequence[Begin], now: float) -> list[Admission]:
        """Record each attempt and reserve its upper bound, in their order, as far as claims and caps admit them."""
        keys = self._database.keys_parameter([begin.plan.answer_key for begin in wanted])
        answered = set(connection.scalars(self._answered, keys))
        barred = {row.answer_key: row.status for row in connection.execute(self._barred, keys)}
        barred |= dict.fromkeys(connection.scalars(self._given_up, keys), "refused")
        room = _Room(self._account_states(connection, wanted))
        admissions: list[Admission] = []
        rows: list[dict[str, Any]] = []
        for begin in wanted:
            plan = begin.plan
            if plan.answer_key in answered:
                admissions.append(Admission(None, "answered"))
            elif plan.answer_key in barred:
                is_refused = barred[plan.answer_key] == "refused"
                admissions.append(Admission(None, "refused" if is_refused else "claimed"))
            elif not room.take(plan, begin.caps):
                admissions.append(Admission(None, "no_room"))
            else:
                barred[plan.answer_key] = "in_flight"
                rows.append(self._row(connection, begin, now))
                admissions.append(Admission(begin.attempt_id))
        if rows:
            connection.execute(self._insert, rows)
            self._change(connection, room.changes)
        pairs = list(zip(admissions, wanted, strict=True))
        left_out = {_accounts_of(begin.plan) for it, begin in pairs if it.why_not == "no_room"}
        # once for all of the same accounts: a batch may leave out thousands, and the writers' lock is held
        in_flight = {names: self._count_in_flight(connection, names) for names in left_out}
        return [
            it._replace(in_flight=in_flight[_accounts_of(begin.plan)]) if it.why_not == "no_room" else it
            for it, begin in pairs
        ]

    def settle(self, connection: Connection, settlements: Sequence[Settlement]) -> None:
        """Close attempts, release their reservations and store their answers; what is settled or not there stays so."""
        ids = [settlement.attempt_id for settlement in settlements]
        query = select(attempts.c.id, attempts.c.status).where(attempts.c.id.in_(ids))
        before = {row.id: row.status for row in connection.execute(query)}
        # a lease that ran out may have made this process look dead: then its bound is counted as spent already
        mine = [found for found in settlements if before.get(found.attempt_id) in {"in_flight", "unknown"}]
        if not mine:
            return
        connection.execute(self._close, [_closed(settlement) for settlement in mine])
        changes: Changes = defaultdict(lambda: [0, 0])
        for settlement in mine:
            bound = to_pico(settlement.plan.bound_usd)
            counted = bound if settlement.status == "unknown" else to_pico(settlement.cost_usd)
            is_open = before[settlement.attempt_id] == "in_flight"
            for account in _accounts_of(settlement.plan):
                changes[account][0] -= bound if is_open else 0
                changes[account][1] += counted if is_open else counted - bound
        self._change(connection, changes)
        kept = [_kept(settlement) for settlement in mine if settlement.reply is not None]
        if kept:
            connection.execute(self._keep, kept)

    def close_as_unknown(self, connection: Connection, rows: Iterable[Any], error: str) -> int:
        """Close rows (id, run, month, bound_pico) of attempts in flight whose end nobody will tell; returns how many."""
        return self._make_unknown(connection, rows, error, reserved=True)

    def reopen_as_unknown(self, connection: Connection, rows: Iterable[Any]) -> None:
        """Count rows (id, run, month, bound_pico) at their bound that were closed as not billed."""
        self._make_unknown(connection, rows, "closed before its batch was created", reserved=False)

    def _make_unknown(self, connection: Connection, rows: Iterable[Any], error: str, *, reserved: bool) -> int:
        changes: Changes = defaultdict(lambda: [0, 0])
        ids: list[int] = []
        for row in rows:
            ids.append(row.id)
            for account in filter(None, (row.run, row.month)):
                changes[account][0] -= row.bound_pico if reserved else 0
                changes[account][1] += row.bound_pico
        if ids:
            closing = update(attempts).where(attempts.c.id == bindparam("attempt"))
            values = {"status": "unknown", "error": error}
            connection.execute(closing.values(values), [{"attempt": number} for number in ids])
            self._change(connection, changes)
        return len(ids)

    def forget_prices(self) -> None:
        """After a transaction that failed: what it added is not there."""
        self._prices.clear()

    def _count_in_flight(self, connection: Connection, names: tuple[str, ...]) -> int:
        """How many requests on these accounts may still make room; a batch takes hours to."""
        of_these = attempts.c.run.in_(names) | attempts.c.month.in_(names)
        is_online = (attempts.c.status == "in_flight") & attempts.c.batch.is_(None)
        return connection.scalar(select(func.count()).where(is_online & of_these)) or 0

    def _account_states(self, connection: Connection, wanted: Sequence[Begin]) -> dict[str, list[int]]:
        names = sorted({account for begin in wanted for account in _accounts_of(begin.plan)})
        parameter = self._database.keys_parameter(names)
        found = {name: [spent, reserved] for name, spent, reserved in connection.execute(self._states, parameter)}
        if new := [name for name in names if name not in found]:
            connection.execute(self._open_account, [{"name": name} for name in new])
            found |= {name: [0, 0] for name in new}
        return found

    def _change(self, connection: Connection, changes: Changes) -> None:
        rows = [{"account": name, "reserved": plus[0], "spent": plus[1]} for name, plus in sorted(changes.items())]
        connection.execute(self._change_account, rows)

    def _row(self, connection: Connection, begin: Begin, now: float) -> dict[str, Any]:
        plan = begin.plan
        return {
            "id": begin.attempt_id,
            "answer_key": plan.answer_key,
            "prompt_id": plan.prompt_id,
            "run": plan.run,
            "month": plan.month,
            "purpose": plan.purpose,
            "provider": plan.provider,
            "model": plan.model,
            "status": "in_flight",
            "bound_pico": to_pico(plan.bound_usd),
            "price": self._price(connection, plan.rates),
            "owner": begin.owner_id,
            "batch": begin.batch,
            "started_at": now,
            **_tokens(NOTHING),
        }

    def _price(self, connection: Connection, rates: Rates) -> int:
        if (known := self._prices.get(rates)) is not None:
            return known
        content = orjson.dumps(rates.snapshot()).decode()
        connection.execute(self._database.insert_if_new(prices), {"content": content})
        found = connection.scalar(select(prices.c.id).where(prices.c.content == content))
        assert found is not None
        self._prices[rates] = found
        return found


class _Room:
    """What the caps still admit while one group of attempts is begun."""

    def __init__(self, states: dict[str, list[int]]) -> None:
        self._committed = {name: spent + reserved for name, (spent, reserved) in states.items()}
        self.changes: Changes = defaultdict(lambda: [0, 0])

    def take(self, plan: AttemptPlan, caps: Caps) -> bool:
        """Reserve an attempt's bound in both of its accounts, or in neither."""
        bound = to_pico(plan.bound_usd)
        for account, cap in ((plan.run, caps.run_usd), (plan.month, caps.month_usd)):
            if account is not None and cap is not None and self._committed[account] + bound > to_pico(cap):
                return False
        for account in _accounts_of(plan):
            self._committed[account] += bound
            self.changes[account][0] += bound
        return True


def _accounts_of(plan: AttemptPlan) -> tuple[str, ...]:
    return (plan.run,) if plan.month is None else (plan.run, plan.month)


def _closed(settlement: Settlement) -> dict[str, Any]:
    return {
        "attempt": settlement.attempt_id,
        "status": settlement.status,
        "http_status": settlement.http_status,
        "error": None if settlement.error is None else one_line(settlement.error),
        "cost_pico": None if settlement.status == "unknown" else to_pico(settlement.cost_usd),
        "seconds": settlement.seconds,
        **_tokens(settlement.usage or NOTHING),
    }


def _kept(settlement: Settlement) -> dict[str, Any]:
    reply = settlement.reply
    assert reply is not None
    return {
        "answer_key": settlement.plan.answer_key,
        "attempt_id": settlement.attempt_id,
        "message": orjson.dumps(reply.message).decode(),
        "finish_reason": one_line(reply.finish_reason),
    }


def _tokens(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.input,
        "cached_input_tokens": usage.cached_input,
        "cache_write_tokens": usage.cache_write,
        "output_tokens": usage.output,
        "reasoning_tokens": usage.reasoning,
    }


def _pico(column: Any) -> Any:
    """A column of USD as the whole pico-dollars that are stored."""
    return column.cast(BigInteger).label(f"{column.name}_pico") if isinstance(column.type, Usd) else column
