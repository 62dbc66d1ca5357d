"""What a child run is given from outside, before anything is read by it."""

import re
from pathlib import PurePosixPath

from potstill.arms import Arm
from potstill.artifacts import ArtifactRef
from potstill.errors import NotAuthorisedError
from potstill.recipe import Compute, Recipe

KIND, DIGEST = re.compile(r"[A-Za-z]+"), re.compile(r"[0-9a-f]{64}")


def here(recipe: Recipe) -> Recipe:
    """The recipe as a child runs it: by itself, not by handing it on."""
    return recipe.model_copy(update={"compute": Compute()})


def own(ref: ArtifactRef) -> ArtifactRef:
    """A reference into the store, and to no other place. Errors: `NotAuthorisedError`."""
    path = PurePosixPath(ref.uri)
    is_named = KIND.fullmatch(ref.kind) and DIGEST.fullmatch(ref.digest)
    if not is_named or path.is_absolute() or ".." in path.parts or path.parts[:1] != ("artifacts",):
        raise NotAuthorisedError(
            f"{ref.kind[:40]!r} {ref.digest[:64]!r} at {ref.uri[:200]!r} is no artefact of the store: give its uri as artifacts/<kind>/<digest12>"
        )
    return ref


def own_arm(arm: Arm) -> Arm:
    """An arm whose student lies in the store. Errors: `NotAuthorisedError`."""
    if arm.student is not None:
        own(arm.student)
    return arm
