"""The night: is there enough that is new? Then distil it; only what is new is paid for."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.distill_student import distil
from potstill.recipe import Recipe
from tasks.cancelling import cancel_children
from tasks.night import look_for_news, skip, take_in
from tasks.preflight import check
from tasks.run_names import name_by_night


@flow(  # pyright: ignore[reportCallIssue] - Prefect's wrapper takes it
    name="redistill",
    flow_run_name=name_by_night,
    persist_result=True,
    result_serializer="json",
    on_cancellation=[cancel_children],
    on_crashed=[cancel_children],
)
def redistill(recipe: Recipe) -> State[Any]:
    """Distil again where at least `inbox.min_new_prompts` prompts are new since the latest run; else end as Skipped.

    A night that was missed or crashed leaves its prompts to the next one; two nights at once wait for each other.
    """
    tonight = take_in(recipe)
    news = look_for_news(recipe, tonight)
    if news.num_new < recipe.inbox.min_new_prompts:
        return skip(recipe, news)
    check(tonight)
    return distil(tonight)
