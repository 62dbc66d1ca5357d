"""Where the teacher's batches run: threads of this process, or the Dask workers that `POTSTILL_DASK` names."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prefect.logging import get_run_logger
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from potstill.artifacts import ArtifactRef
from potstill.cluster import Cluster, find_cluster
from potstill.errors import UsageError
from potstill.recipe import Recipe
from potstill.teacher.outcome import BatchReport
from tasks.policies import batches_at_once

if TYPE_CHECKING:
    from prefect_dask.task_runners import DaskTaskRunner


@contextmanager
def batch_runner(
    recipe: Recipe, prompts: ArtifactRef, *, is_collected: bool
) -> "Iterator[ThreadPoolTaskRunner[BatchReport] | DaskTaskRunner]":
    """What the batches are mapped on; threads also where nothing is left to ask.

    Errors: those of `find_cluster` and `dividing`, before anything is asked.
    """
    at_once = batches_at_once(recipe.teacher)
    if recipe.compute.teach == "threads" or is_collected:
        with ThreadPoolTaskRunner[BatchReport](at_once) as runner:
            yield runner
        return
    from prefect_dask.task_runners import DaskTaskRunner

    from tasks.dividing import dividing

    cluster = find_cluster(recipe.teacher)
    with (
        temporary_settings({PREFECT_API_URL: _server_of(cluster)}),
        DaskTaskRunner(**_where(cluster, at_once)) as runner,
        dividing(runner.client, recipe, prompts) as threads,
    ):
        said = "%d Dask workers share the teacher's limits, in %d threads; %d keep the concurrency up"
        get_run_logger().info(said, len(threads), sum(threads.values()), at_once)
        yield runner


def _where(cluster: Cluster, at_once: int) -> dict[str, Any]:
    """TLS with certificates made for the run: else whoever has an account here could hand these workers a pickle."""
    if cluster.address is not None:
        return {"address": cluster.address}
    threads = math.ceil(at_once / cluster.local_workers)
    sizes = {"n_workers": cluster.local_workers, "threads_per_worker": threads, "memory_limit": 0}
    here = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    return {"cluster_kwargs": {**sizes, **here, "security": True, "scheduler_kwargs": {"dashboard": False}}}


def _server_of(cluster: Cluster) -> str:
    """Prefect's server, by an address that each worker reaches: without one they would all start their own."""
    if (url := PREFECT_API_URL.value()) is not None:
        return url
    if cluster.address is not None:
        raise UsageError(f"the Dask workers of {cluster.address} need Prefect's server too: set PREFECT_API_URL")
    return SubprocessASGIServer().api_url
