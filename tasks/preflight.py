"""Preflight: what would stop the run later is found before anything is paid for."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from potstill import preflight
from potstill.recipe import Recipe
from tasks.curation import has_prompts
from tasks.gpu_pool import check_gpu_pool
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
