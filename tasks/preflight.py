"""Preflight: what would stop the run later is found before anything is paid for."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment

from potstill import preflight
from potstill.recipe import Recipe
from tasks.keys import load_block


@task(cache_policy=NO_CACHE)
def check(recipe: Recipe) -> None:
    """Inputs, base, scorer, terms, key and price. It costs nothing, so it is never remembered."""
    preflight.check(recipe, load_block, is_deployed=deployment.id is not None)
