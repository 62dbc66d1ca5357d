"""Curation: production logs → PromptSet."""

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from potstill.artifacts import ArtifactRef, StageKey, open_store
from potstill.curation import curate as stage
from potstill.recipe import Recipe
from tasks.caching import is_pinned, mirror, pinned

PIN = "curate"


def _key(recipe: Recipe) -> StageKey:
    return pinned(PIN, StageKey, lambda: stage.stage_key(recipe.curation, recipe.task.kind))


def has_prompts() -> bool:
    """Whether this run has begun with prompts already: it needs its inputs no more, which may lie on another machine."""
    return is_pinned(PIN)


@task(cache_policy=mirror(_key), result_serializer="json")
def curate(recipe: Recipe) -> ArtifactRef:
    """The prompt set of the recipe's inputs: redacted, without duplicates, split. The same inputs are read once.

    A run that is suspended or retried keeps to the prompts that it began with, however its logs have grown meanwhile.
    """
    store = open_store()
    prompts = store.lookup(_key(recipe)) or stage.curate(
        recipe.curation, recipe.task.kind, store, recipe_fingerprint=recipe.fingerprint
    )
    summary = stage.read_summary(store.path(prompts))
    create_markdown_artifact(stage.describe(summary), key="curation", description=stage.say_kept(summary))
    stage.check_splits(summary)
    if summary.splits["test"] < recipe.gate.min_prompts:
        get_run_logger().warning(
            "%d test prompts, gate.min_prompts is %d: the gate will be undecided",
            *(summary.splits["test"], recipe.gate.min_prompts),
        )
    return prompts
