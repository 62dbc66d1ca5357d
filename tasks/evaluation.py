"""Evaluation: teacher, base, candidate and champion answer the test split, and are scored."""

from prefect import task
from prefect.artifacts import create_table_artifact

from potstill.arms import arms_of
from potstill.artifacts import ArtifactRef, StageKey, open_store
from potstill.evaluation import report
from potstill.gate import TEACHER
from potstill.recipe import Recipe
from tasks.caching import mirror
from tasks.generation import generate_arm


def evaluate(recipe: Recipe, prompts: ArtifactRef, completions: ArtifactRef, student: ArtifactRef) -> ArtifactRef:
    """The evaluation of every arm on the test split; the champion answers too, where another student serves."""
    given = {arm.name: generate_arm(recipe, prompts, arm) for arm in arms_of(recipe, student, open_store())}
    return score_arms(recipe, prompts, {TEACHER: completions, **given})


def _score_key(recipe: Recipe, prompts: ArtifactRef, arms: dict[str, ArtifactRef]) -> StageKey:
    return report.score_key(recipe.task, prompts, arms)


@task(cache_policy=mirror(_score_key), result_serializer="json")
def score_arms(recipe: Recipe, prompts: ArtifactRef, arms: dict[str, ArtifactRef]) -> ArtifactRef:
    """The score of every arm, with what could not be scored."""
    store = open_store()
    evaluation = report.score_arms(recipe.task, prompts, arms, store)
    found = report.read_report(store.path(evaluation))
    said = f"Every arm on the {found.num_prompts} prompts of the test split, by {found.metric}"
    create_table_artifact([arm.row for arm in found.arms], key="evaluation", description=said)
    return evaluation
