"""Files of results: one JSON object a line, and a line that cannot be read stops no other."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import IO, Any

import orjson

from potstill.llm.batches.base import BatchResult
from potstill.llm.batches.spool import TURN
from potstill.llm.messages import Reply
from potstill.llm.providers.base import Failure, Provider
from potstill.llm.providers.errors import hidden_status


async def read_lines(file: IO[bytes], read: Callable[[dict[str, Any]], BatchResult]) -> AsyncIterator[BatchResult]:
    """The result of each line, one at a time; closes the file."""
    with file:
        for number, line in enumerate(file, start=1):
            if number % TURN == 0:
                await asyncio.sleep(0)
            if line.strip():
                yield _read(line, number, read)


def _read(line: bytes, number: int, read: Callable[[dict[str, Any]], BatchResult]) -> BatchResult:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        row = None
    custom_id = row.get("custom_id") if isinstance(row, dict) else None
    if row is None or not isinstance(custom_id, str):
        return malformed("", f"line {number} of the results cannot be read")
    try:
        return read(row)
    except (LookupError, TypeError, ValueError, AttributeError):
        return malformed(custom_id, f"line {number} of the results holds neither answer nor error")


def answered(custom_id: str, provider: Provider, body: Any) -> BatchResult:
    """The result of a request that a model has answered, or that failed under a status which tells of no error."""
    outcome = provider.read_reply(body)
    if isinstance(outcome, Failure) and (hidden := hidden_status(body)) is not None:
        failed = provider.read_error(hidden, body, {})._replace(usage=outcome.usage)
        return BatchResult(custom_id, failed, hidden, may_be_billed=False)
    is_unreadable = not isinstance(outcome, Reply) and outcome.usage is None
    return BatchResult(custom_id, outcome, 200, may_be_billed=is_unreadable)


def refused(custom_id: str, provider: Provider, status: int, body: Any) -> BatchResult:
    """The result of a request that got an error; a provider bills answers only."""
    return BatchResult(custom_id, provider.read_error(status, body, {}), status, may_be_billed=False)


def not_done(custom_id: str, why: str) -> BatchResult:
    """The result of a request that never ran."""
    return BatchResult(custom_id, Failure("transient", f"not done: {why}"), None, may_be_billed=False)


def malformed(custom_id: str, message: str) -> BatchResult:
    return BatchResult(custom_id, Failure("transient", message), None, may_be_billed=True)
