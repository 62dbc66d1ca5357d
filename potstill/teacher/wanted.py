"""What a batch of the teacher's still lacks, drawn one by one by any number of workers."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from potstill.ledger.grouping import GroupedLedger
from potstill.ledger.spend import add_up
from potstill.teacher.outcome import Step, Tally
from potstill.teacher.plan import CHUNK_ROWS, PlannedAnswer, TeachPlan

OnStep = Callable[[Step], None]


class Listed:
    """Draws these answers."""

    def __init__(self, answers: Sequence[PlannedAnswer]) -> None:
        self._ready = deque(answers)
        self.at_most = len(answers)

    async def draw(self) -> PlannedAnswer | None:
        """The next one; None at the end."""
        return self._ready.popleft() if self._ready else None

    def exchange(self, answer: PlannedAnswer) -> PlannedAnswer:
        """Put one back, and take another from anywhere among the next ones, if there is one."""
        if not self._ready:
            return answer
        place = random.randrange(len(self._ready))  # noqa: S311 - no secret, only not always the same
        other, self._ready[place] = self._ready[place], answer
        return other


class Missing(Listed):
    """Draws, chunk by chunk, what the ledger lacks."""

    def __init__(self, plan: TeachPlan, ledger: GroupedLedger, rows: range, tally: Tally, on_step: OnStep) -> None:
        super().__init__(())
        self._plan = plan
        self._rows = rows
        self._ledger = ledger
        self._tally = tally
        self._on_step = on_step
        self._chunks: AsyncIterator[list[PlannedAnswer]] = self._read()
        self._refill = asyncio.Lock()
        self.at_most = len(rows) * plan.teacher.samples

    async def draw(self) -> PlannedAnswer | None:
        """The next one; None at the end."""
        while not self._ready:
            async with self._refill:
                if self._ready:
                    break
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    return None
                self._ready.extend(await look_up(self._ledger, chunk, self._tally, self._on_step))
        return self._ready.popleft()

    async def _read(self) -> AsyncIterator[list[PlannedAnswer]]:
        """A run that is resumed begins about where it stopped: what it has answered is looked up last."""
        start, stop = self._rows.start, self._rows.stop
        middle = start
        if len(self._rows) > CHUNK_ROWS:
            spent = add_up(await self._ledger.run(self._ledger.ledger.spend, self._plan.run))
            middle = min(start + spent.answered // self._plan.teacher.samples, stop)
        for begin, end in ((middle, stop), (start, middle)):
            for chunk in self._plan.chunks(begin, end):
                yield chunk


async def look_up(
    ledger: GroupedLedger, chunk: Sequence[PlannedAnswer], tally: Tally, on_step: OnStep
) -> list[PlannedAnswer]:
    """What of these is to be asked for; the others are counted."""
    standing = await ledger.look_up(answer.key for answer in chunk)
    ready = [answer for answer in chunk if answer.key in standing.missing]
    asked = {answer.key: answer for answer in ready}  # a prompt that stands in two rows is asked once
    refused = sum(answer.key in standing.refused for answer in chunk)
    done = len(chunk) - len(asked)
    tally.counts.update(refused=refused, found=done - refused)
    if done:
        on_step(Step(found=done))
    return list(asked.values())
