"""Teaching: PromptSet → Completions, in batches that show progress, retries and cost."""

from prefect import task, unmapped
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from potstill.artifacts import ArtifactRef, StageKey, open_store
from potstill.errors import TransientTeacherError
from potstill.ledger import open_ledger
from potstill.recipe import Recipe
from potstill.teacher import collect as stage
from potstill.teacher.outcome import BatchReport
from potstill.teacher.plan import batch_key, split_batches
from potstill.teacher.sharing import begin_sessions, caps_of, plan_of, shared_session
from potstill.teacher.unfinished import has_open_batches, open_batches
from tasks.batch_check import begin_batch
from tasks.batch_progress import BatchBar
from tasks.caching import mirror
from tasks.keys import load_block
from tasks.logs import line_logger
from tasks.policies import OF_A_BATCH
from tasks.provider_batches import ask_in_batches
from tasks.runners import batch_runner
from tasks.spending import spending_stops_first, wait_for


def teach(recipe: Recipe, prompts: ArtifactRef) -> ArtifactRef:
    """Every prompt answered once. A re-run pays only for what is missing."""
    begin_sessions()
    plan, ledger = plan_of(recipe, prompts), open_ledger()
    is_collected = open_store().lookup(_collect_key(recipe, prompts)) is not None
    if not is_collected and (recipe.teacher.mode == "batch" or has_open_batches(plan, ledger)):
        wait_for([ask_in_batches.submit(recipe, prompts)], plan, recipe)
    if recipe.teacher.mode == "online" or recipe.teacher.stragglers_online:
        _ask_online(recipe, prompts, is_collected=is_collected)
    return collect_completions(recipe, prompts)


def _ask_online(recipe: Recipe, prompts: ArtifactRef, *, is_collected: bool) -> None:
    plan, ledger = plan_of(recipe, prompts), open_ledger()
    asking = [] if is_collected else open_batches(plan, ledger)
    done = sorted(set(range(len(split_batches(plan)))) - set(asking))
    what = {"recipe": unmapped(recipe), "prompts": unmapped(prompts)}
    ask_again = teach_batch.with_options(refresh_cache=True)  # the ledger knows better than a cache
    with batch_runner(recipe, prompts, is_collected=is_collected) as runner, spending_stops_first():
        batches = [*runner.map(teach_batch, {"index": done, **what}), *runner.map(ask_again, {"index": asking, **what})]
        wait_for(batches, plan, recipe)


def _batch_key(recipe: Recipe, prompts: ArtifactRef, index: int) -> StageKey:
    plan = plan_of(recipe, prompts)
    return batch_key(plan, split_batches(plan)[index], open_ledger().id)


@task(task_run_name="teach-batch-{index}", cache_policy=mirror(_batch_key), **OF_A_BATCH)
def teach_batch(recipe: Recipe, prompts: ArtifactRef, index: int) -> BatchReport:
    """One batch answered; what the ledger holds is not asked again."""
    batch = split_batches(plan := plan_of(recipe, prompts))[index]
    bar, check = BatchBar(len(batch) * plan.teacher.samples), begin_batch(recipe, plan.run)
    with shared_session(plan, open_ledger(), caps_of(recipe), load_block) as session:
        report = session.answer(batch, bar.add, lambda: bar.show(check), line_logger())
    bar.finish(report)
    get_run_logger().info(report.describe())
    if report.unanswered:
        raise TransientTeacherError(f"{report.unanswered} prompts have no answer yet: {report.last_error}")
    return report


def _collect_key(recipe: Recipe, prompts: ArtifactRef) -> StageKey:
    return stage.collect_key(plan_of(recipe, prompts), open_ledger())


@task(cache_policy=mirror(_collect_key), result_serializer="json")
def collect_completions(recipe: Recipe, prompts: ArtifactRef) -> ArtifactRef:
    """The answers of all batches as one artefact, quarantined ones marked."""
    plan, store = plan_of(recipe, prompts), open_store()
    completions = stage.collect(plan, open_ledger(), store, inputs=(prompts,), recipe_fingerprint=recipe.fingerprint)
    summary = stage.read_summary(store.path(completions))
    create_markdown_artifact(summary.describe(), key="quarantine", description="Answers that are not trained on")
    return completions
