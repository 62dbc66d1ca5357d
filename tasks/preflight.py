"""Preflight: what would stop the run later is found before anything is paid for."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import WorkerStatus
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger

from potstill import preflight
from potstill.errors import UsageError
from potstill.recipe import Recipe
from tasks.curation import has_prompts
from tasks.gpu_pool import EVALUATE, TRAIN
from tasks.keys import load_block


@task(cache_policy=NO_CACHE)
def check(recipe: Recipe) -> None:
    """Inputs, base, scorer, terms, key and price. It costs nothing, so it is never remembered."""
    preflight.check(recipe, load_block, is_deployed=_is_deployed(), has_prompts=has_prompts())
    if recipe.compute.train == "pool":
        check_gpu_pool()


def _is_deployed() -> bool:
    """Whether this run's parameters came through the API: it was created from a deployment."""
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None


def check_gpu_pool() -> None:
    """Before anything is paid for. Errors: `UsageError` where this server has no deployment for training or generation.

    Where nothing takes runs from the pool just now, it warns: a worker may be started while the teacher still answers.
    """
    with get_client(sync_client=True) as client:
        for deployment in (TRAIN, EVALUATE):
            try:
                found = client.read_deployment_by_name(deployment)
            except ObjectNotFound:
                raise UsageError(
                    f"compute.train is pool, but this Prefect server has no deployment {deployment}: deploy it with "
                    "`prefect deploy --all`, or set it to inline"
                ) from None
        pool = found.work_pool_name or "gpu"
        if client.read_work_pool(pool).is_paused:
            _warn(f"work pool {pool} is paused: `prefect work-pool resume {pool}`")
        elif not any(worker.status == WorkerStatus.ONLINE for worker in client.read_workers_for_work_pool(pool)):
            _warn(f"work pool {pool} has no worker online: `make up`, or `prefect worker start --pool {pool}`")


def _warn(said: str) -> None:
    get_run_logger().warning("%s; until then the training waits, whatever the teacher has been paid", said)
