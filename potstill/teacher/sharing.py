"""One session a run and process, however many tasks hand it batches at once: one limiter, one cap."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import lru_cache

from potstill.artifacts import ArtifactRef, open_store
from potstill.ledger import Ledger
from potstill.recipe import Recipe
from potstill.records import Prompt, read_parquet
from potstill.teacher.plan import TeachPlan, make_plan, prompt_set_rows
from potstill.teacher.session import TeacherSession


class _Shared:
    def __init__(self, session: TeacherSession) -> None:
        self.session = session
        self.users = 0


_lock = threading.Lock()
_open: dict[str, _Shared] = {}


def plan_of(recipe: Recipe, prompts: ArtifactRef) -> TeachPlan:
    """The teacher's plan for a prompt set; every batch of a run asks for the same one, so it is kept."""
    return _plan(recipe.model_dump_json(), prompts.model_dump_json())


@lru_cache(maxsize=2)
def _plan(recipe_json: str, prompts_json: str) -> TeachPlan:
    recipe = Recipe.model_validate_json(recipe_json)
    directory = open_store().path(ArtifactRef.model_validate_json(prompts_json))
    rows = read_parquet(directory / "prompts.parquet", Prompt)
    return make_plan(prompt_set_rows(rows), recipe.teacher, recipe.task)


@contextmanager
def shared_session(plan: TeachPlan, ledger: Ledger, budget_usd: Decimal | None) -> Iterator[TeacherSession]:
    """The running session of this plan; the first user opens it, the last one closes it."""
    with _lock:
        shared = _open.get(plan.run)
        if shared is None:
            shared = _open[plan.run] = _Shared(TeacherSession(plan, ledger, budget_usd).__enter__())
        shared.users += 1
    try:
        yield shared.session
    finally:
        with _lock:
            shared.users -= 1
            if shared.users == 0:
                del _open[plan.run]
                shared.session.__exit__(None, None, None)
