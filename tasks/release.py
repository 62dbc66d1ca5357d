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
    """The version of a student that was let in; None where gate or approver let none in. Releasing again changes nothing.

    It fails where another champion serves than the student was compared with: the same recipe again compares anew.
    """
    published = release_stage.publish(run, open_store())
    if published is None:
        get_run_logger().warning("Nothing is released: see the verdict and the approval")
        return None
    logger, name = get_run_logger(), f"{run.recipe.name}@{published.version}"
    if published.alias == "champion":
        logger.info("%s is released", name)
    else:
        logger.warning("%s does not serve: it was taken out of service after this decision", name)
    return published
