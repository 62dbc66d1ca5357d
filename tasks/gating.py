"""The deploy gate: EvalReport → GateDecision."""

from prefect import task
from prefect.artifacts import create_markdown_artifact

from potstill import gate_stage as stage
from potstill.artifacts import ArtifactRef, StageKey, open_store
from potstill.recipe import Recipe
from tasks.caching import mirror


def _key(recipe: Recipe, evaluation: ArtifactRef) -> StageKey:
    return stage.decision_key(evaluation, recipe.gate)


@task(cache_policy=mirror(_key), result_serializer="json")
def decide(recipe: Recipe, evaluation: ArtifactRef) -> ArtifactRef:
    """The verdict on the candidate. Rejected and undecided are results, not errors."""
    store = open_store()
    decision = stage.decide(evaluation, recipe.gate, store)
    found = stage.read_decision(store.path(decision))
    create_markdown_artifact(found.describe(), key="gate", description=f"{found.verdict.capitalize()}: {found.reason}")
    return decision
