"""How tasks retry and what they remember: the only place where such numbers live.

A request that fails is asked again by `potstill.llm.retrying`, which bridges seconds. A batch's retry bridges an outage:
once that policy has given up on some of its prompts, only those are asked again, a minute later.
"""

import math
from collections.abc import Awaitable, Callable
from typing import Any, TypedDict

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun

from potstill.errors import PotstillError
from potstill.recipe import Teacher

BATCH_RETRIES = 2
BATCH_RETRY_SECONDS: list[float] = [10, 60]
CHILD_RETRIES = 1
"""A training or generation child that died goes on from what it left."""
MOST_BATCHES_AT_ONCE = 64
"""Each is a thread and a task run of its own, so batches that are small cannot use a high `concurrency`."""
BATCHES_A_SHARE = 3
"""So many batches for each that `concurrency` would fill: a batch ends with its slowest answer, and meanwhile others must
fill its slots. Simulated with answer times of σ 0.5: two lose 42 % to the ideal time, three 2 %."""


def batches_at_once(teacher: Teacher) -> int:
    """How many batches keep `concurrency` requests in flight."""
    share = math.ceil(teacher.concurrency / teacher.batch_size)
    return min(BATCHES_A_SHARE * share + 1, MOST_BATCHES_AT_ONCE)


async def is_worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """What Potstill calls fatal would fail again; anything unforeseen is not asked twice either."""
    error = await state.aresult(raise_on_failure=False)
    return isinstance(error, PotstillError) and not error.fatal


class _OfAChild(TypedDict):
    result_serializer: str
    retries: int
    retry_condition_fn: Callable[..., Awaitable[bool]]


class _OfABatch(_OfAChild):
    retry_delay_seconds: list[float]


OF_A_CHILD = _OfAChild(result_serializer="json", retries=CHILD_RETRIES, retry_condition_fn=is_worth_retrying)
"""A task whose work is a child process: one that died goes on from what it left."""
OF_A_BATCH = _OfABatch(
    result_serializer="json",
    retries=BATCH_RETRIES,
    retry_delay_seconds=BATCH_RETRY_SECONDS,
    retry_condition_fn=is_worth_retrying,
)
"""A task that asks for a batch of answers: what an outage left is asked for again."""
