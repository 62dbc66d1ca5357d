"""What a ledger's database says, read without the ledger, and what must be true of it at every moment."""

import sqlite3
from collections import Counter, defaultdict
from decimal import Decimal
from typing import Any, NamedTuple

from potstill.ledger import AttemptPlan
from potstill.ledger.entries import Admission
from potstill.ledger.schema import PICO, to_pico
from potstill.owner import this_process

ALIVE = this_process().model_dump_json()
DEAD = this_process().model_copy(update={"started_at": 0.0}).model_dump_json()
"""The same process number, taken by another process since."""
UNKNOWN_TO_ALL = ("the process died while it was in flight", "cancelled")


class Row(NamedTuple):
    key: str
    run: str
    month: str | None
    status: str
    cost: int | None
    bound: int
    owner: int
    error: str | None

    @property
    def spent(self) -> int:
        if self.status == "in_flight":
            return 0
        return self.bound if self.status == "unknown" else self.cost or 0


class Audit:
    """Amounts in pico-dollars.

    Args:
        url: the ledger's.
        caps: by account.
        keys: of the answers, by the mark of their prompt.
        bill: what was truly billed, by account; it grows.
    """

    def __init__(self, url: str, caps: dict[str, int], keys: dict[str, str], bill: Counter[str]) -> None:
        self._bill = bill
        self._keys = keys
        self._connection: Any = _connect(url)
        self._caps = caps
        self.checks = 0
        self.tightest: dict[str, int] = dict(caps)
        """The least that was ever left of a cap."""

    def check(self) -> None:
        """The accounts are the sum of their rows and within their caps, and cover what was truly billed."""
        self.checks += 1
        bill = self._bill
        sums: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        for row in self.rows():
            for account in filter(None, (row.run, row.month)):
                sums[account][0] += row.spent
                sums[account][1] += row.bound if row.status == "in_flight" else 0
        stored = self._connection.execute("SELECT name, spent_usd, reserved_usd FROM accounts").fetchall()
        for name, spent, reserved in stored:
            assert [spent, reserved] == sums[name], f"{name} is not the sum of its attempts"
            committed = spent + reserved
            if name in self._caps:
                self.tightest[name] = min(self.tightest[name], self._caps[name] - committed)
                assert committed <= self._caps[name], f"{name}: {committed} committed of {self._caps[name]}"
                assert bill[name] <= self._caps[name], f"{name}: {bill[name]} billed of {self._caps[name]}"
            assert bill[name] <= committed, f"{name}: {bill[name]} billed, {committed} committed"
        assert set(bill) <= {name for name, _, _ in stored}

    def check_refusal(self, plan: AttemptPlan, admission: Admission) -> None:
        """What is refused for want of room, right after it was, does not fit; and all are told of that may make some."""
        accounts = {plan.run, plan.month} - {None}
        [(account, cap)] = self._caps.items()
        assert self.committed(account) + to_pico(plan.bound_usd) > cap, "refused though it fits"
        online = sum(row.status == "in_flight" and bool({row.run, row.month} & accounts) for row in self.rows())
        assert admission.in_flight == online, f"{online} are in flight, {admission.in_flight} were told"

    def rows(self) -> list[Row]:
        """Every attempt, in the order of its id."""
        columns = "answer_key, run, month, status, cost_usd, bound_usd, owner, error"
        return [Row(*row) for row in self._connection.execute(f"SELECT {columns} FROM attempts ORDER BY id").fetchall()]

    def committed(self, account: str) -> int:
        found = self._connection.execute("SELECT name, spent_usd + reserved_usd FROM accounts").fetchall()
        return dict(found).get(account, 0)

    def has_answer(self, mark: str) -> bool:
        key = self._keys[mark]
        return bool(self._connection.execute(f"SELECT 1 FROM answers WHERE answer_key = '{key}'").fetchall())

    def set_owner(self, owner: int, process: str) -> None:
        """What others find where they look whether an owner lives."""
        self._connection.execute(f"UPDATE owners SET process = '{process}' WHERE id = {owner}")

    def close(self) -> None:
        self._connection.close()


def to_usd(pico: int) -> Decimal:
    return pico * PICO


def _connect(url: str) -> Any:
    if url.startswith("sqlite:///"):
        return sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    import psycopg

    return psycopg.connect(url, autocommit=True)
