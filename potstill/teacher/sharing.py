"""One session a run and process, however many tasks hand it batches at once: one limiter, one cap."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

from potstill.artifacts import ArtifactRef, open_store
from potstill.ledger import Caps, Ledger
from potstill.llm.keys import LoadBlock
from potstill.recipe import Recipe
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import StoredRows
from potstill.teacher.session import TeacherSession


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
            shared = _open[same] = _Shared(TeacherSession(plan, ledger, caps, load_block=load_block).__enter__())
        shared.users += 1
    try:
        yield shared.session
    finally:
        with _lock:
            shared.users -= 1
            if shared.users == 0:
                del _open[same]
                shared.session.__exit__(None, None, None)
