"""What one process may take of a teacher's limits where several ask at once: parts that never exceed the whole together."""

import asyncio

from pydantic import Field

from potstill.errors import UsageError
from potstill.recipe import Teacher
from potstill.records import Row

LOOK_SECONDS = 0.02


class Share(Row):
    """One of `of` equal parts."""

    number: int = Field(ge=0)
    of: int = Field(ge=1)

    def part(self, cap: int) -> int:
        """The whole requests, or tokens, of a cap that are this share's; those of all shares add up to the cap."""
        return cap * (self.number + 1) // self.of - cap * self.number // self.of

    @property
    def fraction(self) -> float:
        return 1 / self.of


WHOLE = Share(number=0, of=1)


def check_shares(teacher: Teacher, processes: int) -> None:
    """Errors: `UsageError` where a cap is too small to give each process one."""
    for name, cap in (("concurrency", teacher.concurrency), ("rpm", teacher.rpm), ("tpm", teacher.tpm)):
        if cap is not None and cap < processes:
            raise UsageError(
                f"teacher.{name} {cap} cannot be divided among {processes} Dask workers: raise it, or start {cap} at most"
            )


class Slots(asyncio.Semaphore):
    """A semaphore whose size may change while it is in use."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._size = size
        self._owed = 0
        """Slots that are gone as soon as somebody frees one."""

    def release(self) -> None:
        """Free a slot, unless it is gone."""
        if self._owed > 0:
            self._owed -= 1
        else:
            super().release()

    async def resize(self, size: int) -> None:
        """Return once no more than so many are in use."""
        owed, self._owed = self._owed + self._size - size, 0
        self._size = size
        while owed < 0:
            owed += 1
            super().release()
        while owed > 0 and not self.locked():
            owed -= 1
            await self.acquire()
        self._owed = owed
        while self._owed > 0:  # noqa: ASYNC110 - rare, and over within a request's time
            await asyncio.sleep(LOOK_SECONDS)
