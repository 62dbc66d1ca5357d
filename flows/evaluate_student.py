"""A child for the GPU work pool: one arm's answers to a split. Its result is an artefact; the parent asks the store for it."""

from prefect import flow

from potstill.arms import Arm
from potstill.artifacts import ArtifactRef
from potstill.recipe import Recipe
from potstill.records import Split
from tasks.generation import generate_arm
from tasks.parameters import here, own, own_arm


@flow(name="evaluate-student", persist_result=True, result_serializer="json")
def evaluate_student(
    recipe: Recipe, prompts: ArtifactRef, arm: Arm, split: Split = "test", limit: int | None = None
) -> None:
    """Have a student answer a split of a prompt set. Started again after a crash, it goes on where it stopped."""
    generate_arm(here(recipe), own(prompts), own_arm(arm), split, limit)
