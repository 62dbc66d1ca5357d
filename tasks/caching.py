"""What a task remembers: the store is the truth, Prefect's cache its mirror; what a run found first is pinned in the store too."""

from collections.abc import Callable
from typing import Any, TypeVar

from prefect.cache_policies import CacheKeyFnPolicy
from prefect.context import TaskRunContext
from prefect.runtime import flow_run
from pydantic import TypeAdapter

from potstill.artifacts import StageKey, open_store

T = TypeVar("T")


def mirror(key_of: Callable[..., StageKey]) -> CacheKeyFnPolicy:
    """Prefect's cache as a mirror of the store: its key follows the store's, and a missing artefact means another one."""

    def cache_key(_: TaskRunContext, parameters: dict[str, Any]) -> str:
        return open_store().mirror_key(key_of(**parameters))

    return CacheKeyFnPolicy(cache_key_fn=cache_key)


def pinned(what: str, kind: type[T], find: Callable[[], T]) -> T:
    """What this flow run found first: it holds for all of it, also where it goes on elsewhere after it was suspended or retried."""
    if flow_run.id is None:
        return find()
    form = TypeAdapter(kind)
    return form.validate_json(
        open_store().pins.keep(f"{flow_run.id}/{what}", lambda: form.dump_json(find()).decode()),
    )


def is_pinned(what: str) -> bool:
    """Whether this flow run has found it before."""
    return flow_run.id is not None and open_store().pins.read(f"{flow_run.id}/{what}") is not None
