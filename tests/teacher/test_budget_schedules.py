"""The cap against seeded schedules of two owners, killed anywhere; `tests/drills/teacher/test_budget.py` runs a thousand."""

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from potstill.ledger import AttemptPlan, Caps, Settlement
from potstill.ledger.entries import NO_CAPS
from potstill.ledger.grouping import GroupedLedger
from potstill.ledger.writing import Writer
from tests.teacher.simulation.owner import WatchedLedger
from tests.teacher.simulation.schedule import Schedule
from tests.teacher.simulation.world import Process, World

SEEDS = 10
MUTANT_SEEDS = 20
"""A mutant is found within so many."""


def test_no_schedule_overshoots_its_cap_loses_an_answer_or_asks_twice(tmp_path: Path) -> None:
    figures = [Schedule(seed, database(tmp_path, seed)).run() for seed in range(SEEDS)]
    assert sum(found.deaths.total() for found in figures) > SEEDS / 2
    assert sum(found.requests for found in figures) > 5 * SEEDS
    assert {"BudgetReachedError", "BatchReport"} <= set().union(*(found.endings for found in figures))


def test_a_seed_gives_the_same_schedule_again(tmp_path: Path) -> None:
    first, second = (Schedule(7, database(tmp_path, number)).run() for number in range(2))
    assert first == second


class ReleasesTheUnknown(WatchedLedger):
    """Takes what nobody knows for what cost nothing."""

    def write(self, settlements: Sequence[Settlement], wanted: Sequence[Any]) -> Any:
        freed = [it._replace(status="failed") if it.status == "unknown" else it for it in settlements]
        return super().write(freed, wanted)


class ChecksBeforeTheGroup(WatchedLedger):
    """Compares each attempt with the cap as it stood before its group."""

    def write(
        self,
        settlements: Sequence[Settlement],
        wanted: Sequence[tuple[AttemptPlan, Caps]],
    ) -> Any:
        unchecked = [(plan, NO_CAPS if self._fits(plan, caps) else caps) for plan, caps in wanted]
        return super().write(settlements, unchecked)

    def _fits(self, plan: AttemptPlan, caps: Caps) -> bool:
        pairs = ((plan.run, caps.run_usd), (plan.month, caps.month_usd))
        return all(
            name is None or cap is None or self.account(name).committed_usd + plan.bound_usd <= cap
            for name, cap in pairs
        )


class BuriesTwice(WatchedLedger):
    """Moves what a dead owner left in flight from reserved to spent twice."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._writer = _BuryingTwice(self._database)


class _BuryingTwice(Writer):
    def close_as_unknown(self, connection: Any, rows: Iterable[Any], error: str) -> int:
        found = list(rows)
        return super().close_as_unknown(connection, [*found, *found], error)


class ForgetsTheDead(WatchedLedger):
    """Frees what a dead owner left in flight."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._writer = _Forgetting(self._database)


class _Forgetting(Writer):
    def close_as_unknown(self, connection: Any, rows: Iterable[Any], error: str) -> int:
        found = list(rows)
        closed = super().close_as_unknown(connection, found, error)
        for row in found:
            connection.exec_driver_sql(f"UPDATE attempts SET status = 'failed', cost_usd = 0 WHERE id = {row.id}")
            for account in filter(None, (row.run, row.month)):
                change = f"SET spent_usd = spent_usd - {row.bound_pico} WHERE name = '{account}'"
                connection.exec_driver_sql(f"UPDATE accounts {change}")
        return closed


class SettlesLate(WatchedLedger):
    """Believes a settlement that comes after its attempt was closed by others, as if it were still open."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._writer = _Believing(self._database)


class _Believing(Writer):
    def settle(self, connection: Any, settlements: Sequence[Settlement]) -> None:
        for it in settlements:
            connection.exec_driver_sql(f"UPDATE attempts SET status = 'in_flight' WHERE id = {it.attempt_id}")
        super().settle(connection, settlements)


class HastyGroupedLedger(GroupedLedger):
    """Counts an answer before it is committed."""

    def settle(self, settlement: Settlement) -> asyncio.Future[None]:
        super().settle(settlement)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class SeesNothingInFlight(WatchedLedger):
    """Says that nothing is in flight that could make room."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._writer = _SeeingNothing(self._database)


class _SeeingNothing(Writer):
    def begin(self, *arguments: Any) -> Any:
        return [admission._replace(in_flight=0) for admission in super().begin(*arguments)]


@pytest.mark.parametrize(
    ("mutant", "what"),
    [
        ({"ledger": ReleasesTheUnknown}, "billed, "),
        ({"ledger": ChecksBeforeTheGroup}, "committed of"),
        ({"ledger": BuriesTwice}, "is not the sum of its attempts"),
        ({"ledger": ForgetsTheDead}, "billed, "),
        ({"ledger": SettlesLate}, "is not the sum of its attempts"),
        ({"ledger": SeesNothingInFlight}, "are in flight, 0 were told"),
        ({"grouped": HastyGroupedLedger}, "counted before it is kept"),
    ],
    ids=lambda value: next(iter(value.values())).__name__ if isinstance(value, dict) else "",
)
def test_the_harness_finds_a_mutant(mutant: dict[str, Any], what: str, tmp_path: Path) -> None:
    def run_all() -> None:
        for seed in range(MUTANT_SEEDS):
            Schedule(seed, database(tmp_path, seed), **mutant).run()

    with pytest.raises(AssertionError, match=what):
        run_all()


def test_a_schedule_that_goes_on_and_on_is_ended() -> None:
    world = World(1)

    def again() -> None:
        world.after(0.001, again)

    again()
    with pytest.raises(AssertionError, match="never ends"):
        world.run()


def test_a_killed_process_runs_no_finally_block_and_finishes_no_transaction(tmp_path: Path) -> None:
    world, said = World(1), list[str]()
    process = Process(world, {"in a callback": 3}, lambda dead, kind: said.append(kind))

    async def live() -> None:
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        finally:
            said.append("finally")

    process.start(live())
    world.run()
    assert said == ["in a callback"]
    world.bury()


def database(directory: Path, number: int) -> str:
    return f"sqlite:///{directory / f'{number}.db'}"
