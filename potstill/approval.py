"""Somebody's word on a student that passed its gate, where its recipe or the operator of the machine asks for it."""

import os
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from pydantic import StringConstraints

from potstill.errors import UsageError
from potstill.records import Row

if TYPE_CHECKING:
    from potstill.recipe import Recipe

APPROVAL_VARIABLE = "POTSTILL_APPROVAL"
"""auto, which is the default, or ask: the operator's own word for the machine that releases."""
Said = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]


class Approval(Row):
    """It goes into the release's lineage."""

    is_approved: bool
    approver: Said
    """As they call themselves: a Prefect server without accounts knows nobody."""
    reason: Said
    at: datetime

    def repeats(self, other: "Approval | None") -> bool:
        """Whether it is the same word, said again."""
        return other is not None and self.model_copy(update={"at": other.at}) == other


def needs_word(recipe: "Recipe | None" = None) -> bool:
    """Whether a student that passed is released on somebody's word only: where the operator asks, or its recipe does.

    A recipe is a parameter that a stranger may have sent: it can ask where the operator does not, never the other way round.
    Errors: `UsageError` where the operator's variable is neither auto nor ask.
    """
    asks = os.environ.get(APPROVAL_VARIABLE, "auto")
    if asks not in {"auto", "ask"}:
        raise UsageError(
            f"{APPROVAL_VARIABLE} is {asks!r}: set it to auto or ask, or unset it, where releases are made"
        )
    return asks == "ask" or (recipe is not None and recipe.gate.approval == "ask")
