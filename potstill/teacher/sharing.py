"""One session a run and process, however many tasks hand it batches at once: one limiter, one cap.

Where several processes ask, whoever leads the run tells each of them its share of the limits.
"""

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

from potstill.artifacts import ArtifactRef, open_store
from potstill.errors import ArtifactMissingError, UsageError
from potstill.ledger import Caps, Ledger, open_ledger
from potstill.llm.endpoint import endpoint_of
from potstill.llm.keys import LoadBlock
from potstill.recipe import Recipe
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import StoredRows
from potstill.teacher.session import TeacherSession
from potstill.teacher.shares import WHOLE, Share


class _SessionKey(NamedTuple):
    run: str
    teacher: str
    ledger: str
    caps: Caps


class _Shared:
    def __init__(self, session: TeacherSession) -> None:
        self.session = session
        self.users = 0


_stopped = threading.Event()
_lock = threading.Lock()
_open: dict[_SessionKey, _Shared] = {}
_shares: dict[str, Share] = {}
"""By the name of the run; what stands in none is asked for as if this process were the only one."""


def plan_of(recipe: Recipe, prompts: ArtifactRef) -> TeachPlan:
    """The teacher's plan for a prompt set; every batch of a run asks for the same one, so it is kept."""
    return _plan(recipe.model_dump_json(), prompts.model_dump_json())


@lru_cache(maxsize=2)
def _plan(recipe_json: str, prompts_json: str) -> TeachPlan:
    recipe = Recipe.model_validate_json(recipe_json)
    prompts = ArtifactRef.model_validate_json(prompts_json)
    return make_plan(StoredRows(open_store().path(prompts), prompts), recipe.teacher, recipe.task, recipe.name)


def caps_of(recipe: Recipe) -> Caps:
    """What a recipe may spend."""
    return Caps(recipe.budget.run_usd, recipe.budget.month_usd)


def begin_sessions() -> None:
    """A new run begins: what stopped an earlier one of this process is over."""
    _stopped.clear()


def stop_sessions() -> None:
    """Cancel what is being asked, and let no batch of this process begin until a new run does: it is being interrupted.

    It lasts beyond the last session: batches that wait in the run's threads would open another one.
    """
    _stopped.set()
    with _lock:  # none is closed meanwhile
        for shared in _open.values():
            shared.session.cancel()


def join_run(recipe: Recipe, prompts: ArtifactRef, run: str, ledger_id: str, share: Share) -> None:
    """In a process that is to ask for a run beside others: take a share of its limits.

    Errors, before anything is asked: `UsageError` where this process has another code or ledger than the run's;
    `ArtifactMissingError` where it does not see the prompts; `NotAuthorisedError` where it lacks the key.
    """
    where = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        plan, ledger = plan_of(recipe, prompts), open_ledger()
    except ArtifactMissingError as error:
        raise ArtifactMissingError(
            f"{where} does not see the prompts: {error}. Give it the POTSTILL_HOME or POTSTILL_STORE of this run"
        ) from None
    if plan.run != run:
        raise UsageError(f"{where} runs another version of Potstill: install the same on each Dask worker")
    if ledger.id != ledger_id:
        raise UsageError(f"{where} writes another ledger, {ledger.url}: set POTSTILL_LEDGER to this run's there")
    if recipe.teacher.api_key_block is None:  # a block is read in the task, which knows Prefect's server
        endpoint_of(recipe.teacher, None)
    take_share(run, share)


def take_share(run: str, share: Share) -> None:
    """Let this process ask for a run at so much of its limits; return once no more is in flight than that."""
    with _lock:
        _shares[run] = share
        held = {key: shared for key, shared in _open.items() if key.run == run}
        for shared in held.values():
            shared.users += 1
    try:
        for shared in held.values():
            shared.session.divide(share)
    finally:
        for key, shared in held.items():
            _leave(key, shared)


def share_of(run: str) -> Share | None:
    """What this process was told that it may take; None where nobody has told it."""
    return _shares.get(run)


def stop_run(run: str) -> None:
    """Cancel what is being asked for a run, for all its batches in this process at once; a later one opens a new session.

    Batches that were stopped one after the other would leave their slots to the next ones, which are cancelled in turn:
    what is cancelled may have been billed.
    """
    with _lock:
        for key in [key for key in _open if key.run == run]:
            _open.pop(key).session.cancel()


@contextmanager
def shared_session(
    plan: TeachPlan, ledger: Ledger, caps: Caps, load_block: LoadBlock | None = None
) -> Iterator[TeacherSession]:
    """The running session of this plan, ledger and caps; the first user opens it, the last one closes it.

    Errors: those of `TeacherSession`; `CancelledError` after `stop_sessions`.
    """
    if _stopped.is_set():
        raise CancelledError("the run is being interrupted: nothing further is asked")
    same = _SessionKey(plan.run, plan.teacher.model_dump_json(), ledger.id, caps)
    with _lock:
        shared = _open.get(same)
        if shared is None:
            session = TeacherSession(plan, ledger, caps, load_block=load_block, share=_shares.get(plan.run, WHOLE))
            shared = _open[same] = _Shared(session.__enter__())
        shared.users += 1
    try:
        yield shared.session
    finally:
        _leave(same, shared)


def _leave(key: _SessionKey, shared: _Shared) -> None:
    """One user less; the last one closes the session."""
    with _lock:
        shared.users -= 1
        if shared.users == 0:
            if _open.get(key) is shared:
                del _open[key]
            shared.session.__exit__(None, None, None)
