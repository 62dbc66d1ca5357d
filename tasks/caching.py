"""What a task remembers: the store is the truth, Prefect's cache its mirror."""

import json
from collections.abc import Callable
from typing import Any

from prefect.cache_policies import CacheKeyFnPolicy
from prefect.context import TaskRunContext
from prefect.runtime import flow_run

from potstill.artifacts import StageKey, open_store, write_atomically


def mirror(key_of: Callable[..., StageKey]) -> CacheKeyFnPolicy:
    """Prefect's cache as a mirror of the store: its key follows the store's, and a missing artefact means another one."""

    def cache_key(_: TaskRunContext, parameters: dict[str, Any]) -> str:
        return open_store().mirror_key(key_of(**parameters))

    return CacheKeyFnPolicy(cache_key_fn=cache_key)


def pinned(key_of: Callable[..., StageKey]) -> Callable[..., StageKey]:
    """The key that this flow run found first, also after it was suspended or retried: its inputs may have changed since."""

    def key(**parameters: Any) -> StageKey:
        run_id = flow_run.id
        if run_id is None:
            return key_of(**parameters)
        path = open_store().root / "runs" / "flow" / f"{run_id}.json"
        if not path.exists():
            write_atomically(path, json.dumps(key_of(**parameters)))
        return StageKey(*json.loads(path.read_text()))

    return key


def _run_key(context: TaskRunContext, _: dict[str, Any]) -> str:
    return f"run/{context.task_run.flow_run_id}/{context.task.name}"


ONCE_A_RUN = CacheKeyFnPolicy(cache_key_fn=_run_key)
"""What a run found when it began holds for all of it, also after it was suspended or retried."""
