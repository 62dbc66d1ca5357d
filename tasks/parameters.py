"""What a child run is given from outside, before anything is read by it."""

from pathlib import PurePosixPath

from potstill.arms import Arm
from potstill.artifacts import ArtifactRef
from potstill.errors import NotAuthorisedError
from potstill.recipe import Compute, Recipe


def here(recipe: Recipe) -> Recipe:
    """The recipe as a child runs it: by itself, not by handing it on."""
    return recipe.model_copy(update={"compute": Compute()})


def own(ref: ArtifactRef) -> ArtifactRef:
    """A reference into the store, and to no other place. Errors: `NotAuthorisedError`."""
    path = PurePosixPath(ref.uri)
    if path.is_absolute() or ".." in path.parts or path.parts[:1] != ("artifacts",):
        raise NotAuthorisedError(f"uri {ref.uri!r} is no artefact of the store: give it as artifacts/<kind>/<digest12>")
    return ref


def own_arm(arm: Arm) -> Arm:
    """An arm whose student lies in the store. Errors: `NotAuthorisedError`."""
    if arm.student is not None:
        own(arm.student)
    return arm
