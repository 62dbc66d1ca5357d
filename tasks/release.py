"""Release: a passed student → a version, the champion of its recipe."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from potstill import release_stage
from potstill.artifacts import ArtifactRef, open_store
from potstill.gate_stage import read_decision
from potstill.recipe import Recipe
from potstill.release import Release


@task(cache_policy=NO_CACHE, result_serializer="json")
def release(
    recipe: Recipe, prompts: ArtifactRef, student: ArtifactRef, evaluation: ArtifactRef, decision: ArtifactRef
) -> Release | None:
    """The version that serves from now on; None where the gate did not pass. Releasing again changes nothing."""
    store = open_store()
    verdict = read_decision(store.path(decision)).verdict
    if verdict != "passed":
        get_run_logger().warning("The gate's verdict is %s: nothing is released", verdict)
        return None
    published = release_stage.publish(recipe, prompts, student, evaluation, decision, store)
    get_run_logger().info("%s@%s is released as %s", recipe.name, published.version, published.alias or "a version")
    return published
