"""Evaluation: teacher, base, candidate and champion answer the test split, and are scored."""

from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact

from potstill.artifacts import ArtifactRef, StageKey, open_store
from potstill.evaluation import generate, report
from potstill.gate import CANDIDATE, CHAMPION, TEACHER
from potstill.recipe import Recipe
from potstill.records import Split
from potstill.release_stage import champion_of
from potstill.student.base import resolve_base
from tasks.policies import CHILD_RETRIES, is_worth_retrying, mirror
from tasks.progress import watch

BASE = "base"


def evaluate(recipe: Recipe, prompts: ArtifactRef, completions: ArtifactRef, student: ArtifactRef) -> ArtifactRef:
    """The evaluation of every arm on the test split; the champion answers too, where another student serves."""
    store = open_store()
    answerers = {
        BASE: generate.Answerer(student=recipe.student),
        CANDIDATE: generate.Answerer(student=recipe.student, adapter=generate.adapter_of(store.path(student))),
        CHAMPION: champion_of(recipe, student, store),
    }
    given = {arm: generate_arm(recipe, prompts, arm, who) for arm, who in answerers.items() if who is not None}
    return score_arms(recipe, prompts, {TEACHER: completions, **given})


def _arm_key(recipe: Recipe, prompts: ArtifactRef, arm: str, answerer: generate.Answerer, **what: Any) -> StageKey:  # noqa: ARG001 - a name is no key
    base = resolve_base(answerer.student, open_store())
    return generate.generation_key(prompts, base, answerer.adapter, config=recipe.evaluation, **what)


@task(
    task_run_name="generate-{arm}",
    cache_policy=mirror(_arm_key),
    result_serializer="json",
    retries=CHILD_RETRIES,
    retry_condition_fn=is_worth_retrying,
)
def generate_arm(
    recipe: Recipe,
    prompts: ArtifactRef,
    arm: str,
    answerer: generate.Answerer,
    split: Split = "test",
    limit: int | None = None,
) -> ArtifactRef:
    """One arm's answers to a split. A run that was cut off goes on where it stopped."""
    store = open_store()
    return generate.generate(
        prompts,
        resolve_base(answerer.student, store),
        answerer.adapter,
        recipe.evaluation,
        store,
        split=split,
        limit=limit,
        on_step=watch(f"answers-{arm}"),
    )


def _score_key(recipe: Recipe, prompts: ArtifactRef, arms: dict[str, ArtifactRef]) -> StageKey:
    return report.score_key(recipe.task, prompts, arms)


@task(cache_policy=mirror(_score_key), result_serializer="json")
def score_arms(recipe: Recipe, prompts: ArtifactRef, arms: dict[str, ArtifactRef]) -> ArtifactRef:
    """The score of every arm, with what could not be scored."""
    store = open_store()
    evaluation = report.score_arms(recipe.task, prompts, arms, store)
    rows = [arm.model_dump(mode="json") for arm in report.read_report(store.path(evaluation)).arms]
    create_table_artifact(rows, key="evaluation", description="Every arm on the test split")
    return evaluation
