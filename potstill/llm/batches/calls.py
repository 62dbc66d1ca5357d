"""The calls of a batch protocol: which are repeated, and which are looked for before they are."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import IO, Any, TypeVar

from potstill.errors import NotAuthorisedError, TeacherError, TransientTeacherError
from potstill.llm.batches.base import BatchState, NoBatchesError, NotCreatedError, ResultsGoneError
from potstill.llm.batches.connection import Connection, LostAnswerError, NotThereError
from potstill.llm.retrying import RetryPolicy, retrying

T = TypeVar("T")

LOOKS = 3
"""So often is a batch looked for whose creation may be under way, before it is created again."""
STOPPING = frozenset({"cancelling", "canceling"})


class Calls:
    """A provider's calls under one policy; the pause between attempts is injected by tests."""

    def __init__(
        self, connection: Connection, policy: RetryPolicy, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self.connection = connection
        self.provider = connection.provider
        self._policy = policy
        self._sleep = sleep

    async def get(self, path: str, read: Callable[[Any], T], **parameters: Any) -> T:
        """What lies there; see `Connection.call`."""
        return await self.retried(lambda: self.connection.call("GET", path, read, params=parameters))

    async def listed(self, path: str, read: Callable[[Any], T], **parameters: Any) -> T:
        """A page of the list of batches."""
        with needing_batches():
            return await self.get(path, read, **parameters)

    async def retried(self, call: Callable[[], Awaitable[T]]) -> T:
        """The outcome of a call that may be carried out twice."""
        async for attempt in retrying(self._policy, self._sleep):
            with attempt:
                return await call()
        raise AssertionError("the loop ends with a value or an error")

    async def created(self, create: Callable[[], Awaitable[T]], look: Callable[[], Awaitable[T | None]]) -> T:
        """The outcome of a call that must not be carried out twice: where its answer is lost, look for what it made."""
        is_lost = False

        async def attempt() -> T:
            nonlocal is_lost
            if is_lost and (found := await self._look(look)) is not None:
                return found
            try:
                return await create()
            except LostAnswerError:
                is_lost = True
                raise

        try:
            return await self.retried(attempt)
        except LostAnswerError:
            if (found := await self._look(look)) is not None:
                return found
            raise

    async def _look(self, look: Callable[[], Awaitable[T | None]]) -> T | None:
        for pause in range(LOOKS):
            if pause:
                await self._sleep(2.0**pause)
            try:
                found = await look()
            except (NotAuthorisedError, TeacherError) as error:  # whatever it is, it says nothing of the batch
                raise TransientTeacherError(
                    f"{error}. Whether the batch was created is open: run the same again"
                ) from None
            if found is not None:
                return found
        return None

    async def cancelled(self, path: str, read: Callable[[Any], BatchState]) -> BatchState:
        """The batch at this path, stopped; a provider may refuse where there is nothing left to stop."""
        state = await self.get(path, read)
        if state.status == "ended" or state.said in STOPPING:
            return state
        try:
            return await self.retried(lambda: self.connection.call("POST", f"{path}/cancel", read))
        except TeacherError:
            state = await self.get(path, read)
            if state.status == "ended" or state.said in STOPPING:
                return state
            raise

    async def download(self, location: str, least_lines: int = 0) -> IO[bytes]:
        """A file of results, whole, in an unlinked temporary file; it is the caller's to close.

        Fewer lines than the least mean that it was cut. Errors: `ResultsGoneError` where there is no such file.
        """
        with needing_results():
            return await self.retried(lambda: self._download(location, least_lines))

    async def _download(self, location: str, least_lines: int) -> IO[bytes]:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - it outlives this call
        try:
            await self._fill(file, location, least_lines)
        except BaseException:
            file.close()
            raise
        return file

    async def _fill(self, file: IO[bytes], location: str, least_lines: int) -> None:
        lines, last = 0, b""
        async for chunk in self.connection.chunks(location):
            file.write(chunk)
            lines += chunk.count(b"\n")
            last = chunk[-1:]
        lines += last not in {b"", b"\n"}
        if lines < least_lines:
            raise LostAnswerError(f"{location} holds {lines} of {least_lines} results")
        file.seek(0)

    async def first_line(self, location: str) -> bytes:
        """The first line of a file of results; the rest is not downloaded. Errors: as `download`."""

        async def read() -> bytes:
            start = b""
            async with aclosing(self.connection.chunks(location)) as chunks:
                async for chunk in chunks:
                    start += chunk
                    if b"\n" in start:
                        break
            return start.partition(b"\n")[0]

        with needing_results():
            return await self.retried(read)


@contextmanager
def before_creation() -> Iterator[None]:
    """What fails in here has created no batch."""
    try:
        yield
    except TransientTeacherError as error:
        said = "No batch was created: run the same again, with mode online where that stays so"
        raise NotCreatedError(f"{error}. {said}") from None


@contextmanager
def needing_batches() -> Iterator[None]:
    """Calls in here are answered by every endpoint that has batches."""
    try:
        yield
    except NotThereError as error:
        raise NoBatchesError(f"{error}: this endpoint has no batches: ask it with mode online") from None


@contextmanager
def needing_results() -> Iterator[None]:
    """Calls in here ask for a file that the provider has named."""
    try:
        yield
    except NotThereError as error:
        raise ResultsGoneError(f"{error}: the results of this batch are not there") from None
