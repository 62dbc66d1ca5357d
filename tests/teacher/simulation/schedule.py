"""One schedule, all of it drawn from its seed: two owners on one ledger and one cap, killed and started again until done."""

import random
from collections import Counter
from decimal import Decimal
from typing import NamedTuple

from potstill.errors import BudgetReachedError, PermanentTeacherError
from potstill.ledger import Caps, Ledger
from potstill.ledger.grouping import GroupedLedger
from potstill.ledger.schema import to_pico
from potstill.llm.client import ChatClient
from potstill.llm.endpoint import open_endpoint
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import ListedRows
from tests.fake_teacher import MARK, make_teacher, row
from tests.teacher.simulation.audit import ALIVE, DEAD, UNKNOWN_TO_ALL, Audit, to_usd
from tests.teacher.simulation.owner import Owner, Place, WatchedLedger
from tests.teacher.simulation.provider import REFUSED, URL, Provider, Traits
from tests.teacher.simulation.world import World

MISTAKEN_SHARE = 0.2
MISTAKES = 3
"""Of the schedules, so many take living owners for dead: then one key may be asked by two at a time."""


class Figures(NamedTuple):
    """What one schedule came to."""

    deaths: Counter[str]
    waits: Counter[str]
    """Where the tasks of killed processes waited."""
    faults: Counter[str]
    endings: Counter[str]
    requests: int
    checks: int
    tightest_usd: Decimal
    """The least that was ever left of the cap."""
    tightest_share: Decimal
    """The same as a share of the cap."""


class Schedule:
    """`Schedule(seed, url).run()`. Errors: `AssertionError` for whatever must not happen.

    Args:
        seed: all that is random.
        url: of a new database.
        ledger: what the owners write with, and `grouped` around it; mutants come in here.
    """

    def __init__(
        self,
        seed: int,
        url: str,
        ledger: type[WatchedLedger] = WatchedLedger,
        grouped: type[GroupedLedger] = GroupedLedger,
    ) -> None:
        random.seed(seed)  # the jitter of pauses
        self._world = World(seed)
        self._url = url
        draw = self._world.random
        self._is_mistaken = draw.random() < MISTAKEN_SHARE
        plans = self._draw_plans()
        caps, self._account, self._cap = self._draw_cap(plans)
        answers = {answer.key: answer for plan in plans for answer in plan.answers()}
        self._texts = {key: answer.prompt.messages[-1]["content"] for key, answer in answers.items()}
        self._marks = {key: MARK.findall(text)[0] for key, text in self._texts.items()}
        encode, rates = ChatClient(open_endpoint("openai_compatible", URL)).encode, plans[0].rates
        self._bounds = {
            key: to_pico(rates.upper_bound(len(encode(answer.request)), answer.request.max_tokens))
            for key, answer in answers.items()
        }
        Ledger(url).close()
        bill = Counter[str]()
        self._audit = Audit(url, {self._account: self._cap}, {mark: key for key, mark in self._marks.items()}, bill)
        traits = Traits(
            fault_share=draw.choice([0.0, 0.1, 0.3, 0.5]),
            latency_seconds=10 ** draw.uniform(-2.5, 0.7),
            dearest_share=draw.choice([0.0, 0.2, 1.0]),
        )
        self._provider = Provider(self._world, traits, bill, self._audit.check, may_cross=self._is_mistaken)
        self._counted: set[str] = set()
        place = Place(self._world, url, self._audit, self._provider, caps, ledger, grouped, self._counted)
        self._owners = [Owner(place, plan, kills=draw.randint(0, 3)) for plan in plans]

    def run(self) -> Figures:
        draw = self._world.random
        try:
            for owner in self._owners:
                self._world.after(draw.uniform(0, 2), owner.live)
            for _ in range(MISTAKES if self._is_mistaken else 0):
                self._world.after(draw.uniform(0, 4), self._mistake)
            self._world.run()
            self._check_the_end()
            return self._figures()
        finally:
            self._world.bury()
            self._audit.close()

    def _draw_plans(self) -> list[TeachPlan]:
        """One plan twice, or two that share some of their prompts."""
        draw = self._world.random
        size = draw.randint(4, 14)
        prompts = [f"Which is #{number:04d}? {'x' * draw.choice([0, 20, 400])}" for number in range(2 * size)]
        for refused in draw.sample(range(2 * size), draw.randint(0, 2)):
            prompts[refused] += REFUSED
        teacher = make_teacher(URL, concurrency=draw.randint(1, 5), max_tokens=draw.choice([8, 64]))
        rows = [row(prompt, prompt) for prompt in prompts]
        first = 0 if draw.random() < 0.5 else draw.randint(1, size)
        return [
            make_plan(ListedRows(half), teacher, None, recipe="recipe")
            for half in (rows[:size], rows[first : first + size])
        ]

    def _draw_cap(self, plans: list[TeachPlan]) -> tuple[Caps, str, int]:
        """A share of what the prompts may cost: of one run where both plans are the same, else of their month."""
        draw = self._world.random
        dearest = plans[0].rates.upper_bound(600, plans[0].teacher.max_tokens)
        requests = draw.choice([draw.uniform(0.5, 4), draw.uniform(0.1, 1.5) * len(plans[0].rows)])
        cap = (dearest * Decimal(requests)).quantize(Decimal("1e-9"))
        if plans[0].run == plans[1].run and draw.random() < 0.7:
            return Caps(run_usd=cap), plans[0].run, to_pico(cap)
        month = plans[0].month()
        assert month is not None
        return Caps(month_usd=cap), month, to_pico(cap)

    def _mistake(self) -> None:
        """A clock that is set makes one who lives look dead for a while, and a third process looks just then."""
        draw = self._world.random
        change = draw.choice(self._owners).mistake_for_dead()
        if change is not None:
            change(DEAD)
            third = Ledger(self._url)
            third.close_orphans()
            third.close()
            self._audit.check()
            self._world.after(draw.uniform(0, 3), lambda: change(ALIVE))

    def _check_the_end(self) -> None:
        rows = self._audit.rows()
        assert all(row.status != "in_flight" for row in rows)
        ledger = Ledger(self._url)
        found, standing = ledger.find_answers(self._marks), ledger.look_up(self._marks)
        ledger.close()
        assert self._counted <= {self._marks[key] for key in found}, "an answer that was counted is lost"
        assert all(answer.reply.text == f"answer to {self._marks[key]}" for key, answer in found.items())
        assert all(REFUSED in self._texts[key] for key in standing.refused)
        for key in self._marks:
            self._check_cost(key)
        outcomes = [type(owner.outcome) for owner in self._owners]
        left = standing.missing
        if (
            PermanentTeacherError in outcomes
        ):  # before it has answered, an endpoint may refuse a prompt by its own fault
            left = {key for key in left if REFUSED not in self._texts[key]}
        if left:
            assert BudgetReachedError in outcomes
            room = self._cap - self._audit.committed(self._account)
            dearest = max(self._bounds[key] for key in left)
            assert dearest > room, f"stopped though {room} are left and the dearest request may cost {dearest}"

    def _check_cost(self, key: str) -> None:
        attempts = [row for row in self._audit.rows() if row.key == key]
        mark = self._marks[key]
        known = Counter(row.cost for row in attempts if row.status in {"answered", "unusable"})
        told = Counter(self._provider.readable[mark])
        assert known <= told, f"{mark}: {known} in the ledger, {told} told"
        untold = sum(row.status == "unknown" and row.error in UNKNOWN_TO_ALL for row in attempts)
        assert (told - known).total() <= untold, f"{mark}: what was told is not in the ledger"
        assert self._provider.arrivals[mark] <= len(attempts), "every request is a row"
        assert self._is_mistaken or sum(row.status == "answered" for row in attempts) <= 1

    def _figures(self) -> Figures:
        tightest = self._audit.tightest[self._account]
        return Figures(
            deaths=self._owners[0].deaths + self._owners[1].deaths,
            waits=self._owners[0].waits + self._owners[1].waits,
            faults=self._provider.faults,
            endings=Counter(type(owner.outcome).__name__ for owner in self._owners),
            requests=self._provider.requests,
            checks=self._audit.checks,
            tightest_usd=to_usd(tightest),
            tightest_share=Decimal(tightest) / self._cap,
        )
