"""What holds a base model and the adapters on it, behind one small interface."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from potstill.errors import SubprocessError


class BackendDownError(SubprocessError):
    """The backend does not answer now; it is being started again."""


class Backend(Protocol):
    """One base model with any number of adapters, speaking OpenAI's chat protocol.

    A request for `model` NAME is answered by the adapter that was loaded under NAME, and its answers say so in `model`.
    """

    @property
    def url(self) -> str:
        """Where it answers, without the /v1. Errors: `BackendDownError` while it does not."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """What every request to it must carry."""
        ...

    async def load(self, name: str, directory: Path) -> None:
        """Make an adapter answer under a name; again changes nothing. A name is never given a second meaning.

        Errors: `BackendDownError`; `SubprocessError` where the backend refuses the adapter.
        """
        ...

    async def healthy(self) -> bool:
        """Whether it answers now."""
        ...

    async def stop(self) -> None:
        """End it, and every process that it started."""
        ...
