"""The requests of one batch in an unlinked temporary file: written once, sent as often as it takes, never in memory."""

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import IO, Any, NamedTuple

from potstill.errors import UsageError
from potstill.llm.batches.base import LONGEST_CUSTOM_ID, TOKEN, Limits, is_of

CHUNK_BYTES = 1 << 18
ALLOWED = re.compile(rf"[A-Za-z0-9_-]{{1,{LONGEST_CUSTOM_ID}}}")
TURN = 256
"""After so many lines the event loop gets its turn."""


class Spool(NamedTuple):
    file: IO[bytes]
    requests: int
    size: int
    """Bytes."""

    def chunks(self) -> Iterator[bytes]:
        self.file.seek(0)
        while chunk := self.file.read(CHUNK_BYTES):
            yield chunk


class Frame(NamedTuple):
    """What stands around and between the requests."""

    start: bytes
    between: bytes
    end: bytes


@asynccontextmanager
async def spooled(
    requests: Iterable[tuple[str, dict[str, Any]]],
    token: str,
    encode: Callable[[str, dict[str, Any]], bytes],
    frame: Frame,
    limits: Limits,
) -> AsyncIterator[Spool]:
    """The requests as a file. Errors: `UsageError` for what no batch may hold, before anything is sent."""
    if not TOKEN.fullmatch(token):
        raise UsageError(f"token {token!r} of a batch: use {TOKEN.pattern}")
    seen: set[str] = set()
    with tempfile.TemporaryFile() as file:
        file.write(frame.start)
        for custom_id, body in requests:
            if custom_id in seen or not is_of(token, custom_id) or not ALLOWED.fullmatch(custom_id):
                raise UsageError(f"custom id {custom_id!r} in batch {token}: make it with custom_id, each once")
            if seen:
                file.write(frame.between)
            file.write(encode(custom_id, body))
            seen.add(custom_id)
            if len(seen) % TURN == 0:
                await asyncio.sleep(0)
        file.write(frame.end)
        file.flush()
        size = file.tell()
        needed = size - len(frame.start) - len(frame.end)
        if not 0 < len(seen) <= limits.requests or needed > limits.bytes:
            raise UsageError(
                f"batch {token} holds {len(seen)} requests in {needed} bytes, and 1 to {limits.requests} in "
                f"{limits.bytes} are taken: cut it with split"
            )
        yield Spool(file, len(seen), size)
