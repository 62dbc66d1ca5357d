"""Looks after batches that were handed in, whichever run did so: finds them again, waits, and collects what they bring."""

import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import NamedTuple

from potstill.errors import NotAuthorisedError, PermanentTeacherError, TeacherError, TransientTeacherError
from potstill.ledger import Ledger
from potstill.ledger.batches import BatchRow
from potstill.llm.batches.base import BatchProtocol, BatchState, NoBatchesError, ResultsGoneError
from potstill.llm.providers import base_url_of
from potstill.teacher.collecting import close_batch, close_lost, close_rejected, close_unsubmitted
from potstill.teacher.finding import find_again
from potstill.teacher.mending import in_order
from potstill.teacher.outcome import Step
from potstill.teacher.plan import TeachPlan

LOOKS = 3
"""A batch whose id never came is looked for so often before it counts as never handed in: a list may lag behind."""
PATIENCE_SECONDS = 1800.0
"""So long may an endpoint fail while a batch is waited for, or not find its results: the batch itself goes on."""


class Full(NamedTuple):
    """A batch that the provider refused because its queue had no room left."""

    requests: int
    said: str


class Look(NamedTuple):
    """What came of looking at the batches that hold answers of a plan."""

    waiting: bool
    """Whether one goes on."""
    ended: int = 0
    """Those that have brought results."""
    full: Full | None = None
    """The largest that found the queue full."""

    def then(self, later: "Look") -> "Look":
        """Both, where the later one says what goes on."""
        full = max(filter(None, (self.full, later.full)), default=None)
        return Look(later.waiting, self.ended + later.ended, full)


class BatchWatch:
    """The batches of one endpoint, seen from one plan.

    Args:
        say: is told, in one line, what a batch does.
        keys: the answers that count as the plan's; all where none are named.
    """

    def __init__(
        self,
        plan: TeachPlan,
        ledger: Ledger,
        protocol: BatchProtocol,
        say: Callable[[str], None],
        keys: Collection[str] | None = None,
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self._protocol = protocol
        self._say = say
        self._keys = keys
        self._looks: Counter[str] = Counter()
        self._failing_since: dict[str, float] = {}

    async def look(self, on_step: Callable[[Step], None]) -> Look:
        """Look once at each batch, and collect those that have ended.

        Only batches that hold answers of this plan are waited for. Errors: those of `BatchProtocol`, and what a rejection
        means for the run; what is wrong with a batch that holds none of them ends the run of its owner only.
        """
        provider, base_url = self._plan.teacher.provider, base_url_of(self._plan.teacher)
        rows = self._ledger.open_batches(provider, base_url)
        ours = self._ours() if rows else set()
        seen = Look(waiting=False)
        for row in rows:
            if row.token not in ours:
                await self._look_at_foreign(row, on_step)
                continue
            one = await self._look_at(row, on_step)
            seen = seen.then(one._replace(waiting=seen.waiting or one.waiting))
        return seen

    async def _look_at_foreign(self, row: BatchRow, on_step: Callable[[Step], None]) -> None:
        """Collect it where it has ended: its prompts may have changed, and then its owner never comes back.

        Nothing is concluded from not seeing it: it may have been handed in with another key.
        """
        if row.batch_id is None:
            return
        try:
            state = await self._protocol.state(row.batch_id)
            if state.status == "ended" and self._ledger.claim_batch(row.token):
                await self._collect(row, state, on_step)
        except (NotAuthorisedError, TeacherError) as error:
            self._say(f"batch {row.batch_id} of another run: {error}")

    async def _look_at(self, row: BatchRow, on_step: Callable[[Step], None]) -> Look:
        if not self._ledger.claim_batch(row.token):
            return Look(waiting=True)
        state = await self._state_of(row)
        if isinstance(state, BatchState) and state.status == "ended":
            try:
                return await self._collect(row, state, on_step)
            except ResultsGoneError as error:
                state = self._doubt(row, error)
        if state is None:
            close_unsubmitted(self._ledger, row)
            self._say(f"batch {row.token} never reached the provider: its prompts may be asked for again")
        return Look(waiting=state is not None)

    def _ours(self) -> set[str]:
        if self._keys is not None:
            return self._ledger.batches_holding(self._keys)
        keys = (answer.key for answers in in_order(self._plan, self._ledger) for answer in answers)
        return self._ledger.batches_holding(keys)

    async def _collect(self, row: BatchRow, state: BatchState, on_step: Callable[[Step], None]) -> Look:
        """Put what a batch that has ended has brought into the ledger."""
        if state.rejection is None:
            async for step in close_batch(self._ledger, row, self._protocol.results(state), self._plan.run):
                on_step(step)
            self._say(f"batch {state.id}: collected")
            return Look(waiting=False, ended=1)
        self._say(f"batch {state.id}: {state.rejection.message}")
        close_rejected(self._ledger, row, state, self._keys_of(row, state.rejected_lines))
        is_full = state.rejection.cause == "rate_limit"
        return Look(waiting=False, full=Full(row.num_requests, state.rejection.message) if is_full else None)

    def _keys_of(self, row: BatchRow, lines: tuple[int, ...]) -> set[str]:
        """The answer keys of these lines of a batch, whose requests were begun in the order in which they went up."""
        attempts = self._ledger.in_batch(row.token) if lines else []
        if len(attempts) != row.num_requests:
            return set()
        return {attempts[line - 1].plan.answer_key for line in lines if line <= len(attempts)}

    async def _state_of(self, row: BatchRow) -> BatchState | str | None:
        """The provider's view of a batch; a word where it is not known yet, None where the provider never had it."""
        try:
            if row.batch_id is None:
                state = await find_again(row, self._ledger, self._protocol)
            else:
                state = await self._protocol.state(row.batch_id)
        except NotAuthorisedError:
            raise
        except NoBatchesError as error:
            self._say(f"batch {row.token}: {error}")
            return None
        except TeacherError as error:
            return self._doubt(row, error)
        if state is None or state.status == "running":
            self._failing_since.pop(row.token, None)  # of one that has ended, the results may be gone still
        if state is None:
            self._looks[row.token] += 1
            return None if self._looks[row.token] >= LOOKS else "not seen yet"
        if state.status == "running":
            done = state.counts.get("completed", state.counts.get("succeeded", 0))
            said = f"the provider says that {done:,} of {row.num_requests:,} are done"
            self._say(f"batch {state.id}: {state.said}; {said}")
        return state

    def _doubt(self, row: BatchRow, error: TeacherError) -> str:
        """An endpoint that fails for a while is no reason to give a batch up; one that has forgotten it is."""
        name = row.batch_id or row.token
        failing_since = self._failing_since.setdefault(row.token, time.monotonic())
        if time.monotonic() - failing_since < PATIENCE_SECONDS:
            self._say(f"batch {name}: {error}; it stays, and is looked at again")
        elif isinstance(error, ResultsGoneError) or (row.batch_id and isinstance(error, PermanentTeacherError)):
            close_lost(self._ledger, row, str(error))
            self._say(f"batch {name}: {error}; what it may have cost counts at its upper bound")
        else:
            raise TransientTeacherError(f"{error}. The batch goes on: run the same again to collect it") from None
        return "in doubt"
