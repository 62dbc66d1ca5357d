"""Release: a passed student → a version, the champion of its recipe."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from potstill import release_stage
from potstill.artifacts import open_store
from potstill.release import Release
from potstill.run_record import RunRecord


@task(cache_policy=NO_CACHE, result_serializer="json")
def release(run: RunRecord) -> Release | None:
    """The version that serves from now on; None where gate or approver let none in. Releasing again changes nothing."""
    published = release_stage.publish(run, open_store())
    if published is None:
        get_run_logger().warning("Nothing is released: see the verdict and the approval")
        return None
    get_run_logger().info("%s@%s is released as %s", run.recipe.name, published.version, published.alias or "a version")
    return published
