"""One who teaches: the real asker, sender and ledger in a simulated process, started again each time it is killed."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import Connection

from potstill.errors import BudgetReachedError, PermanentTeacherError, PotstillError, TransientTeacherError
from potstill.ledger import AttemptPlan, Caps, Ledger, Settlement
from potstill.ledger.entries import Admission
from potstill.ledger.grouping import GroupedLedger
from potstill.llm.retrying import RetryPolicy
from potstill.teacher.asking import Asker
from potstill.teacher.outcome import BatchReport, Step
from potstill.teacher.plan import TeachPlan
from tests.teacher.simulation.audit import DEAD, Audit
from tests.teacher.simulation.provider import Client, Provider
from tests.teacher.simulation.world import KillKind, Process, World

POLICY = RetryPolicy(attempts=8, first_wait_seconds=0.5, longest_wait_seconds=4.0)
MOST_LIVES = 40
SAID = re.compile(r"budget \w+ (\S+) USD reached: (\S+) USD are .* may cost (\d+(?:\.\d+)?)\. ")
LONGEST_REST_SECONDS = 5.0
INTERRUPTED_SHARE = 0.12
KILL_RANGES: dict[KillKind, int] = {
    "in a callback": 250,
    "before a commit": 20,
    "after a commit": 20,
    "as a request left": 8,
    "as a reply came": 8,
}
"""A life that is killed is killed at one of its first so many occasions."""


class WatchedLedger(Ledger):
    """The real one; its process may be killed around each commit, and each commit is audited."""

    def __init__(self, url: str, process: Process, audit: Audit) -> None:
        super().__init__(url)
        self._process = process
        self._audit = audit

    @property
    def owner_id(self) -> int | None:
        return self._owner_id

    def write(self, settlements: Sequence[Settlement], wanted: Sequence[tuple[AttemptPlan, Caps]]) -> list[Admission]:
        admissions = super().write(settlements, wanted)
        for (plan, _), admission in zip(wanted, admissions, strict=True):
            if admission.why_not == "no_room":
                self._audit.check_refusal(plan, admission)
        return admissions

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with super()._writing() as connection:
            yield connection
            self._process.meet_in_a_transaction("before a commit")
        self._audit.check()
        self._process.meet_in_a_transaction("after a commit")


class Place(NamedTuple):
    """What two owners share."""

    world: World
    url: str
    audit: Audit
    provider: Provider
    caps: Caps
    ledger: type[WatchedLedger]
    grouped: type[GroupedLedger]
    counted: set[str]
    """The marks of the answers that any of them was told of."""


class Owner:
    """All lives of one owner.

    Args:
        kills: so many of its lives may be killed or interrupted.
    """

    def __init__(self, place: Place, plan: TeachPlan, kills: int) -> None:
        self.plan = plan
        self.outcome: BatchReport | BaseException | None = None
        """Of its latest life that ended by itself."""
        self.lives = 0
        self.deaths: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self._place = place
        self._kills = kills
        self._process: Process | None = None
        self._ledger: WatchedLedger | None = None

    def live(self) -> None:
        """Begin a life; another follows until all is answered or the budget reached."""
        self.lives += 1
        assert self.lives <= MOST_LIVES, f"it never ends: {self.outcome}"
        place, draw = self._place, self._place.world.random
        kills: dict[KillKind, int] = {}
        is_interrupted = self.lives <= self._kills and draw.random() < INTERRUPTED_SHARE
        if self.lives <= self._kills and not is_interrupted:
            kind = draw.choice(list(KILL_RANGES))
            kills[kind] = draw.randint(1, KILL_RANGES[kind])
        self._process = process = Process(place.world, kills, self._die)
        self._ledger = place.ledger(place.url, process, place.audit)
        grouped = place.grouped(self._ledger, executor=process.thread)
        client = Client(place.provider, process, (self.plan.run, self.plan.month()))
        asker = Asker(self.plan, grouped, client, place.caps, POLICY, clock=process.loop.time)
        process.start(self._teach(process, grouped, client, asker))
        if is_interrupted:
            place.world.after(draw.expovariate(0.5), lambda: self._interrupt(process, asker))

    def mistake_for_dead(self) -> Callable[[str], None] | None:
        """How to change what others find of its process; None where it has not written yet, or is dead."""
        ledger, process = self._ledger, self._process
        if ledger is None or process is None or not process.is_alive or ledger.owner_id is None:
            return None
        owner = ledger.owner_id
        return lambda found: self._place.audit.set_owner(owner, found) if process.is_alive else None

    async def _teach(self, process: Process, grouped: GroupedLedger, client: Client, asker: Asker) -> None:
        """As `TeacherSession` does."""

        def count(step: Step) -> None:
            if step.answered:
                mark = client.last_mark()
                kept = self._place.audit.has_answer(mark)
                self._place.world.expect(kept, f"{mark} is counted before it is kept")
                self._place.counted.add(mark)

        outcome: BatchReport | BaseException
        try:
            await grouped.run(grouped.ledger.close_orphans)
            outcome = await asker.answer(range(len(self.plan.rows)), count)
        except (PotstillError, asyncio.CancelledError) as error:
            outcome = error
        await grouped.flush()
        self._end(process, outcome)

    def _end(self, process: Process, outcome: BatchReport | BaseException) -> None:
        assert self._ledger is not None
        self.outcome = outcome
        process.end()
        owner = self._ledger.owner_id
        self._bury()
        assert all(row.owner != owner for row in self._place.audit.rows() if row.status == "in_flight")
        if isinstance(outcome, BudgetReachedError):
            cap, committed, bound = map(Decimal, SAID.findall(str(outcome))[0])
            assert committed + bound > cap, f"the request would have fitted: {outcome}"
        elif isinstance(outcome, asyncio.CancelledError):
            self.deaths["interrupted"] += 1
            self._rest()
        elif isinstance(outcome, TransientTeacherError) or (isinstance(outcome, BatchReport) and outcome.unanswered):
            self._rest()
        elif not isinstance(outcome, BatchReport | PermanentTeacherError):
            raise outcome

    def _interrupt(self, process: Process, asker: Asker) -> None:
        if process.is_alive:
            process.run_besides(asker.cancel())

    def _die(self, process: Process, kind: KillKind) -> None:
        self.deaths[kind] += 1
        self.waits.update(process.waits)
        self._bury()
        self._rest()

    def _bury(self) -> None:
        """Others find from now on that it is dead."""
        assert self._ledger is not None
        if self._ledger.owner_id is not None:
            self._place.audit.set_owner(self._ledger.owner_id, DEAD)
        self._ledger.close()

    def _rest(self) -> None:
        self._place.world.after(LONGEST_REST_SECONDS * self._place.world.random.random(), self.live)
