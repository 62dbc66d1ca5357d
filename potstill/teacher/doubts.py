"""Refusals that name no fault of the prompt: an endpoint that is set up wrongly refuses every prompt in the same words."""

from collections.abc import Callable

MANY = 30
"""So many refused prompts with no answer between them speak against the endpoint."""


class Doubts:
    """Which refusals may still be the endpoint's fault; an answer that was asked for after a refusal speaks against the prompt.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._open: dict[str, float] = {}
        """Answer keys, and when each was refused."""
        self._proven: set[str] = set()

    @property
    def are_many(self) -> bool:
        return len(self._open) >= MANY

    @property
    def keys(self) -> list[str]:
        """Of the prompts whose refusal nothing has explained."""
        return list(self._open)

    def refused(self, key: str) -> None:
        self._open[key] = self._clock()

    def answered(self, asked_at: float) -> None:
        """An answer came to what was asked at this moment."""
        if self._open:
            proven = {key for key, refused_at in self._open.items() if refused_at < asked_at}
            self._proven |= proven
            self._open = {key: refused_at for key, refused_at in self._open.items() if key not in proven}

    def is_at_fault(self, key: str) -> bool:
        """Whether this prompt was refused, and the endpoint found in order afterwards."""
        return key in self._proven
