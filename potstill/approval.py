"""Somebody's word on a student that passed its gate, where the recipe asks for it."""

from datetime import datetime
from typing import Annotated

from pydantic import StringConstraints

from potstill.records import Row

Said = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]


class Approval(Row):
    """It goes into the release's lineage."""

    is_approved: bool
    approver: Said
    """As they call themselves: a Prefect server without accounts knows nobody."""
    reason: Said
    at: datetime
