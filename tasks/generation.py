"""Generation: an arm's answers to a split, here or by a worker of pool gpu."""

from prefect import task

from potstill.arms import Arm, answerer
from potstill.artifacts import ArtifactRef, StageKey, open_store
from potstill.evaluation import generate
from potstill.recipe import Recipe
from potstill.records import Split
from potstill.student.base import resolve_base
from tasks.caching import mirror
from tasks.gpu_pool import EVALUATE, run_on_gpu
from tasks.policies import OF_A_CHILD
from tasks.progress import watch


def _arm_key(recipe: Recipe, prompts: ArtifactRef, arm: Arm, split: Split, limit: int | None) -> StageKey:
    who = answerer(arm, recipe, store := open_store())
    return generate.generation_key(
        prompts, resolve_base(who.student, store), who.adapter, recipe.evaluation, split, limit
    )


@task(task_run_name="generate-{arm.name}", cache_policy=mirror(_arm_key), **OF_A_CHILD)
def generate_arm(
    recipe: Recipe, prompts: ArtifactRef, arm: Arm, split: Split = "test", limit: int | None = None
) -> ArtifactRef:
    """One arm's answers to a split. A run that was cut off goes on where it stopped."""
    if recipe.compute.train == "pool":
        key = _arm_key(recipe, prompts, arm, split, limit)
        given = {"prompts": prompts, "arm": arm, "split": split, "limit": limit}
        return run_on_gpu(EVALUATE, key, f"{recipe.name} {arm.name} answers", recipe, given)
    who = answerer(arm, recipe, store := open_store())
    return generate.generate(
        prompts,
        resolve_base(who.student, store),
        who.adapter,
        recipe.evaluation,
        store,
        split=split,
        limit=limit,
        on_step=watch(f"answers-{arm.name}"),
    )
