"""Whose answers are compared: which student stands behind the name of an arm."""

from potstill.artifacts import ArtifactRef, ArtifactStore
from potstill.evaluation.generate import Answerer, adapter_of
from potstill.gate import CANDIDATE, CHAMPION
from potstill.recipe import Recipe
from potstill.records import Row
from potstill.release import resolve
from potstill.release_stage import answerer_of, champion_of

BASE = "base"


class Arm(Row):
    """A student by reference, so that another machine finds it too: the base alone, an adapter on it, or a release."""

    name: str
    student: ArtifactRef | None = None
    """A StudentAdapter on the recipe's base."""
    release: str | None = None
    """`<recipe>@<sha12>`: a version on its own base."""


def arms_of(recipe: Recipe, student: ArtifactRef, store: ArtifactStore) -> list[Arm]:
    """Base, candidate, and the champion where another student serves."""
    champion = champion_of(recipe, student, store)
    return [
        Arm(name=BASE),
        Arm(name=CANDIDATE, student=student),
        *([Arm(name=CHAMPION, release=champion)] if champion else []),
    ]


def answerer(arm: Arm, recipe: Recipe, store: ArtifactStore) -> Answerer:
    """The base and adapter behind an arm. Errors: as the store and `potstill.release.resolve` raise them."""
    if arm.release is not None:
        return answerer_of(resolve(store.root, arm.release), store)
    adapter = None if arm.student is None else adapter_of(store.path(arm.student))
    return Answerer(student=recipe.student, adapter=adapter)
