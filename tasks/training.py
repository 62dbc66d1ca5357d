"""Training: SFTDataset → StudentAdapter, by SFT and, where the recipe says so, DPO."""

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from potstill.arms import BASE, Arm
from potstill.artifacts import ArtifactRef, StageKey, open_store
from potstill.recipe import Recipe
from potstill.student.base import resolve_base
from potstill.training import launch
from potstill.training.spec import describe_curve
from tasks.assembly import assemble_pairs
from tasks.caching import mirror
from tasks.generation import generate_arm
from tasks.gpu_pool import TRAIN, run_on_gpu
from tasks.policies import OF_A_CHILD
from tasks.progress import watch


def train(recipe: Recipe, prompts: ArtifactRef, dataset: ArtifactRef) -> ArtifactRef:
    """The trained student: the SFT rung, then DPO against the base's own outputs where the recipe has it."""
    student = train_sft(recipe, dataset)
    if (dpo := recipe.training.dpo) is None:
        return student
    own_outputs = generate_arm(recipe, prompts, Arm(name=BASE), split="train", limit=dpo.max_pairs)
    pairs = assemble_pairs(dataset, own_outputs, dpo.max_pairs)
    if pairs.num_rows == 0:
        get_run_logger().warning("no DPO: the base answers every prompt as the teacher does, the SFT student stays")
        return student
    return train_dpo(recipe, pairs, student)


def _sft_key(recipe: Recipe, dataset: ArtifactRef) -> StageKey:
    return launch.sft_key(dataset, resolve_base(recipe.student, open_store()), recipe.training)


@task(cache_policy=mirror(_sft_key), **OF_A_CHILD)
def train_sft(recipe: Recipe, dataset: ArtifactRef) -> ArtifactRef:
    """The SFT adapter. A run that was cut off goes on from its last checkpoint."""
    if recipe.compute.train == "pool":
        return run_on_gpu(TRAIN, _sft_key(recipe, dataset), f"{recipe.name} sft", recipe, {"dataset": dataset})
    base = resolve_base(recipe.student, store := open_store())
    show = watch("training-sft")
    adapter = launch.train_sft(
        dataset, base, recipe.training, store, on_point=show, recipe_fingerprint=recipe.fingerprint
    )
    return _shown(adapter, "curve-sft")


def _dpo_key(recipe: Recipe, pairs: ArtifactRef, adapter: ArtifactRef) -> StageKey:
    assert recipe.training.dpo is not None
    return launch.dpo_key(pairs, adapter, recipe.training, recipe.training.dpo)


@task(cache_policy=mirror(_dpo_key), **OF_A_CHILD)
def train_dpo(recipe: Recipe, pairs: ArtifactRef, adapter: ArtifactRef) -> ArtifactRef:
    """The SFT adapter after the DPO rung."""
    if recipe.compute.train == "pool":
        given = {"dataset": pairs, "adapter": adapter}
        return run_on_gpu(TRAIN, _dpo_key(recipe, pairs, adapter), f"{recipe.name} dpo", recipe, given)
    base = resolve_base(recipe.student, store := open_store())
    show = watch("training-dpo")
    tuned = launch.train_dpo(
        pairs, adapter, base, recipe.training, store, on_point=show, recipe_fingerprint=recipe.fingerprint
    )
    return _shown(tuned, "curve-dpo")


def _shown(adapter: ArtifactRef, key: str) -> ArtifactRef:
    curve = launch.read_curve(open_store().path(adapter))
    create_table_artifact([point.row for point in curve], key=key, description=f"Loss by step: {describe_curve(curve)}")
    return adapter
