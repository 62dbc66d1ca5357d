"""The night: what has landed, whether it is enough, and the state of a night that had nothing to do."""

from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Completed

from potstill import night
from potstill.artifacts import ArtifactRef, open_store
from potstill.night import News
from potstill.recipe import Recipe
from tasks.caching import pinned
from tasks.curation import curate


@task(cache_policy=NO_CACHE, result_serializer="json")
def take_in(recipe: Recipe) -> Recipe:
    """The recipe with the files that its inbox holds now; a run that is resumed keeps to the files that it began with."""
    inputs = pinned("take-in", tuple[str, ...], lambda: _take_in(recipe))
    return recipe.model_copy(update={"curation": recipe.curation.model_copy(update={"inputs": inputs})})


def _take_in(recipe: Recipe) -> tuple[str, ...]:
    if (missing := night.find_missing_inbox(recipe, open_store().root)) is not None:
        get_run_logger().warning("%s", missing)
    return night.take_in(recipe).curation.inputs


def look_for_news(recipe: Recipe, tonight: Recipe) -> News:
    """What is new among the prompts of tonight."""
    return compare(recipe, curate(tonight) if tonight.curation.inputs else None)


@task(cache_policy=NO_CACHE, result_serializer="json")
def compare(recipe: Recipe, prompts: ArtifactRef | None) -> News:
    """The prompts of tonight against those of the latest run. A run that is resumed is not compared with itself."""
    news = pinned("compare", News, lambda: night.compare(recipe, prompts, open_store(), _goes_on))
    create_markdown_artifact(news.describe(recipe.inbox.min_new_prompts), key="news", description="What has landed")
    return news


def _goes_on(run_id: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(run_id)).state
        except ObjectNotFound:
            return False
    return state is not None and not state.is_final()


def skip(recipe: Recipe, news: News) -> State[Any]:
    """A night without enough to do is a good one, and says why."""
    return Completed(name="Skipped", message=news.describe(recipe.inbox.min_new_prompts), data=news)
