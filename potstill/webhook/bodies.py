"""Room in memory for the bodies of requests: so many bytes in all, whoever sends them, and however slowly.

What a sender has not sent yet takes no room. Where a piece finds none, the unfinished body that began first is cut off: those
who only hold connections open hold up nobody.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from potstill.errors import DataError, InboxError


class Room:
    """At most `num_bytes` of bodies, counted as they come; on one event loop only."""

    def __init__(self, num_bytes: int) -> None:
        self._most = num_bytes
        self.taken = 0
        """Bytes of bodies that are in memory."""
        self._unfinished: dict[Body, None] = {}
        """In the order in which they began."""
        self._freed = asyncio.Event()

    @contextmanager
    def open(self) -> Iterator["Body"]:
        """A body that is to be read; its room is free again when the block is left."""
        body = Body(self)
        try:
            yield body
        finally:
            body.release()

    def begin(self, body: "Body") -> None:
        self._unfinished[body] = None

    def end(self, body: "Body") -> None:
        self._unfinished.pop(body, None)

    def free(self, num_bytes: int) -> None:
        self.taken -= num_bytes
        if num_bytes:
            self._freed.set()

    async def take(self, num_bytes: int, body: "Body") -> None:
        """Room for a piece of a body: that of the unfinished one that began first.

        Where this is the body itself, it waits until a whole one is done with; where none is whole, it is cut off.
        """
        while self.taken + num_bytes > self._most:
            unfinished = [other for other in self._unfinished if other.num_bytes]
            if unfinished and unfinished[0] is not body:
                unfinished[0].cut_off()
            elif self.taken > sum(other.num_bytes for other in unfinished):
                self._freed.clear()
                await self._freed.wait()
            else:
                body.cut_off()
        self.taken += num_bytes


class Body:
    """One request's body. `content` is there once it was read, until it is released."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._pieces: list[bytes] = []
        self._timer = asyncio.timeout(None)
        self._is_cut = False
        self.num_bytes = 0
        """That take room."""

    @property
    def content(self) -> bytes:
        [content] = self._pieces
        return content

    async def read(self, stream: AsyncIterator[bytes], most: int, seconds: float) -> None:
        """Take it in. Errors: `DataError` over `most` bytes; `TimeoutError`; `InboxError` where it was cut off."""
        self._room.begin(self)
        self._timer = asyncio.timeout(seconds)
        try:
            async with self._timer:
                async for piece in stream:
                    if self.num_bytes + len(piece) > most:
                        raise DataError(f"the body is longer than {most:,} bytes: send it in parts, or by reference")
                    await self._room.take(len(piece), self)
                    if self._is_cut:
                        self._room.free(len(piece))
                        break
                    self.num_bytes += len(piece)
                    self._pieces.append(piece)
        except TimeoutError:
            if not self._is_cut:
                raise
        finally:
            self._room.end(self)
        if self._is_cut:
            raise InboxError("too many bodies at once: send this one again")
        self._pieces = [b"".join(self._pieces)]

    def cut_off(self) -> None:
        """Give its room to another, now."""
        self._is_cut = True
        self._room.end(self)
        self.release()
        if not self._timer.expired():
            self._timer.reschedule(0)  # whoever waits for its next piece waits no more

    def release(self) -> None:
        """Let go of what was read."""
        self._pieces = []
        self._room.free(self.num_bytes)
        self.num_bytes = 0
