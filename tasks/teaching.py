"""Teaching: PromptSet → Completions, in batches that show progress, retries and cost."""

from prefect import task, unmapped
from prefect.artifacts import create_table_artifact
from prefect.exceptions import ExternalSignal
from prefect.futures import wait
from prefect.logging import get_run_logger

from potstill.artifacts import ArtifactRef, StageKey, open_store
from potstill.errors import TransientTeacherError
from potstill.ledger import Ledger
from potstill.recipe import Recipe
from potstill.teacher import collect as stage
from potstill.teacher.outcome import BatchReport
from potstill.teacher.plan import batch_key, open_batches, split_batches
from potstill.teacher.sharing import plan_of, shared_session, stop_sessions
from tasks.policies import BATCH_RETRIES, BATCH_RETRY_SECONDS, is_worth_retrying, mirror


def teach(recipe: Recipe, prompts: ArtifactRef) -> ArtifactRef:
    """Every prompt answered once. A re-run pays only for what is missing."""
    plan = plan_of(recipe, prompts)
    asking = open_batches(plan, Ledger()) if open_store().lookup(_collect_key(recipe, prompts)) is None else []
    done = sorted(set(range(len(split_batches(plan)))) - set(asking))
    what = {"recipe": unmapped(recipe), "prompts": unmapped(prompts)}
    batches = [
        *teach_batch.map(index=done, **what),
        *teach_batch.with_options(refresh_cache=True).map(index=asking, **what),  # the ledger knows better than a cache
    ]
    try:
        for batch in wait(batches).done:
            batch.result()
    except (KeyboardInterrupt, ExternalSignal):
        stop_sessions()
        raise
    return collect_completions(recipe, prompts)


def _batch_key(recipe: Recipe, prompts: ArtifactRef, index: int) -> StageKey:
    return batch_key(split_batches(plan_of(recipe, prompts))[index], Ledger().id)


@task(
    task_run_name="teach-batch-{index}",
    cache_policy=mirror(_batch_key),
    result_serializer="json",
    retries=BATCH_RETRIES,
    retry_delay_seconds=BATCH_RETRY_SECONDS,
    retry_condition_fn=is_worth_retrying,
)
def teach_batch(recipe: Recipe, prompts: ArtifactRef, index: int) -> BatchReport:
    """One batch answered; what the ledger holds is not asked again."""
    batch = split_batches(plan := plan_of(recipe, prompts))[index]
    with shared_session(plan, Ledger(), recipe.budget.run_usd) as session:
        report = session.answer(batch)
    get_run_logger().info(
        "%d of %d answers stood in the ledger, %d asked for in %d attempts for %s USD, %d refused",
        *(report.found, report.answers, report.answered, report.attempts, report.cost_usd, report.refused),
    )
    if report.unanswered:
        raise TransientTeacherError(f"{report.unanswered} prompts have no answer yet: {report.last_error}")
    return report


def _collect_key(recipe: Recipe, prompts: ArtifactRef) -> StageKey:
    return stage.collect_key(plan_of(recipe, prompts), Ledger())


@task(cache_policy=mirror(_collect_key), result_serializer="json")
def collect_completions(recipe: Recipe, prompts: ArtifactRef) -> ArtifactRef:
    """The answers of all batches as one artefact, quarantined ones marked."""
    plan, store = plan_of(recipe, prompts), open_store()
    completions = stage.collect(plan, Ledger(), store, inputs=(prompts,), recipe_fingerprint=recipe.fingerprint)
    summary = stage.read_summary(store.path(completions))
    create_table_artifact(
        [{"model": recipe.teacher.model, **summary.model_dump(mode="json", exclude={"reasons"})}],
        key="spend",
        description="What the teacher's answers cost",
    )
    return completions
