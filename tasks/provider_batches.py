"""The provider's batches: half the price, and an answer within a day."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from potstill.artifacts import ArtifactRef
from potstill.errors import TransientTeacherError
from potstill.ledger import open_ledger
from potstill.recipe import Recipe
from potstill.teacher.outcome import BatchReport
from potstill.teacher.sharing import caps_of, plan_of, shared_session
from tasks.keys import load_block
from tasks.logs import line_logger
from tasks.policies import OF_A_BATCH


@task(cache_policy=NO_CACHE, **OF_A_BATCH)
def ask_in_batches(recipe: Recipe, prompts: ArtifactRef) -> BatchReport | None:
    """What the ledger lacks, asked for in batches; where the recipe asks online, only what was handed in is collected.

    A run that ends meanwhile leaves its batches to the provider, and the next one collects them.
    """
    plan, say = plan_of(recipe, prompts), line_logger()
    with shared_session(plan, open_ledger(), caps_of(recipe), load_block) as session:
        if recipe.teacher.mode == "online":
            return session.collect_batches(say)
        report = session.answer_in_batches(say=say)
    get_run_logger().info(
        "%d of %d answers were already in the ledger, %d came in batches for %s USD, %d are refused, %d missing",
        *(report.found, report.answers, report.answered, report.cost_usd, report.refused, report.unanswered),
    )
    if report.unanswered and not recipe.teacher.stragglers_online:
        raise TransientTeacherError(f"{report.unanswered} prompts have no answer yet: {report.last_error}")
    if report.unmended and not recipe.teacher.stragglers_online:
        get_run_logger().warning("%s", report.describe_unmended())
    return report
