"""Whether a run goes on."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy

from potstill.errors import LedgerError, PotstillError


class Stop:
    """The first error that ends a run ends every request of it; it stays the reason."""

    def __init__(self) -> None:
        self.error: PotstillError | None = None
        self._stopping = asyncio.Event()

    def because(self, error: PotstillError) -> None:
        """Let nothing further begin."""
        self.error = self.error or error
        self._stopping.set()

    def check(self) -> None:
        """Raise the reason, where there is one: a copy, since each raise would lengthen the traceback of one that all share,
        until a process that asks for another could not send it there.
        """
        if self.error is not None:
            raise copy(self.error)

    async def sleep(self, seconds: float) -> None:
        """A pause that ends at once, with the reason, when the run stops."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        self.check()

    @contextmanager
    def where_the_ledger_fails(self, url: str) -> Iterator[None]:
        """Whoever cannot write down what is spent must not go on spending."""
        try:
            yield
        except LedgerError as error:
            self.because(error)
            raise
        except Exception as error:
            said = str(error).partition("\n")[0]
            failure = PotstillError(f"ledger {url} cannot be written: {said}. Run the same again once it can")
            self.because(failure)
            raise failure from error
