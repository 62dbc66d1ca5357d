"""Anthropic's Message Batches API: the requests go up in one JSON body, a JSONL stream of results comes down.

Source: Anthropic API reference, "Create / Retrieve / List / Cancel a Message Batch" and "Retrieve Message Batch results";
guide "Batch processing" (limits; errored, canceled and expired requests are not billed).
"""

import time
from collections.abc import AsyncIterator, Collection, Iterable
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from potstill.llm.batches.base import (
    CLOCK_SKEW_SECONDS,
    LONGEST_CUSTOM_ID,
    BatchResult,
    BatchState,
    Limits,
    ResultsGoneError,
    is_of,
)
from potstill.llm.batches.calls import Calls, before_creation
from potstill.llm.batches.lines import answered, not_done, read_lines, refused
from potstill.llm.batches.spool import Frame, spooled

PAGE = 100
ARRAY = Frame(b'{"requests":[', b",", b"]}")
NOT_DONE = frozenset({"canceled", "expired"})
STATUS_OF_ERROR = {
    "invalid_request": 400,
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""What the same error is online; one that is not listed counts as the provider's own, 500."""


class _Page(NamedTuple):
    states: list[BatchState]
    last_id: str | None
    """Where the next page starts; None on the last."""


class AnthropicBatches:
    """`BatchProtocol` of Anthropic.

    A batch carries nothing of ours but the custom ids, and those show in its results only. So `find` is certain of a
    batch that has ended: the first result's id is of the token or it is not. Of one that still runs it sees only when it
    was created and how many requests it holds: such a batch is given with `is_certain` False, the oldest that is not
    `known`. Whoever takes it waits for it and calls `find` again when it has ended; the worst case is a wait for a batch
    of somebody else's, never a prompt paid twice. It must not be cancelled meanwhile. One that has ended and is uncertain
    still, because its first line is damaged, shows in its other results whose it is. `submit` knows more than `find`: a
    batch that was there before it called is not its own.

    `results_url` says that there are results, never where: behind a gateway it names Anthropic's own host, where neither
    the request nor its key belongs.
    """

    limits = Limits(requests=100_000, bytes=240_000_000)
    """Anthropic takes 256 MB a batch, and does not say which MB."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._path = calls.provider.path() + "/batches"

    def size(self, body: dict[str, Any]) -> int:
        return len(_encode("x" * LONGEST_CUSTOM_ID, body)) + len(ARRAY.between)

    async def submit(self, requests: Iterable[tuple[str, dict[str, Any]]], token: str) -> BatchState:
        started = time.time()
        async with spooled(requests, token, _encode, ARRAY, self.limits) as spool:
            with before_creation():
                others = {state.id async for state in self._listed(started)}  # what is there already is not ours
            return await self._calls.created(
                lambda: self._calls.connection.call("POST", self._path, self._read_state, spool=spool),
                lambda: self.find(token, started, spool.requests, others),
            )

    async def state(self, batch_id: str) -> BatchState:
        return await self._calls.get(f"{self._path}/{batch_id}", self._read_state)

    async def results(self, state: BatchState) -> AsyncIterator[BatchResult]:
        if state.answers_at is None:
            raise ResultsGoneError(f"batch {state.id} ({state.said}) has no results: they are kept for 29 days")
        file = await self._calls.download(state.answers_at, least_lines=sum(state.counts.values()))
        async for result in read_lines(file, self._read_result):
            yield result

    async def cancel(self, batch_id: str) -> BatchState:
        return await self._calls.cancelled(f"{self._path}/{batch_id}", self._read_state)

    async def find(
        self, token: str, since: float, requests: int, known: Collection[str] = frozenset()
    ) -> BatchState | None:
        oldest: BatchState | None = None
        async for state in self._listed(since):
            if state.id in known or sum(state.counts.values()) != requests:
                continue
            first = await self._first_custom_id(state.answers_at) if state.answers_at else None
            if first is None:
                oldest = state
            elif is_of(token, first):
                return state
        return oldest and oldest._replace(is_certain=False)

    async def _listed(self, since: float) -> AsyncIterator[BatchState]:
        """The batches created since then, the newest first."""
        after: dict[str, str] = {}
        while True:
            page = await self._calls.listed(self._path, self._read_page, limit=PAGE, **after)
            fresh = [state for state in page.states if state.created_at >= since - CLOCK_SKEW_SECONDS]
            for state in fresh:
                yield state
            if page.last_id is None or not fresh:
                return
            after = {"after_id": page.last_id}

    async def _first_custom_id(self, location: str) -> str | None:
        """None where the first line cannot be read, or is gone."""
        try:
            return str(orjson.loads(await self._calls.first_line(location))["custom_id"])
        except (orjson.JSONDecodeError, LookupError, TypeError, ResultsGoneError):
            return None

    def _read_page(self, body: Any) -> _Page:
        states = [self._read_state(batch) for batch in body["data"]]
        return _Page(states, states[-1].id if states and body.get("has_more") else None)

    def _read_state(self, body: Any) -> BatchState:
        said, batch_id = str(body["processing_status"]), str(body["id"])
        has_results = said == "ended" and body.get("results_url")
        return BatchState(
            id=batch_id,
            status="ended" if said == "ended" else "running",
            said=said,
            counts={name: int(count or 0) for name, count in body["request_counts"].items()},
            created_at=datetime.fromisoformat(body["created_at"]).timestamp(),
            answers_at=f"{self._path}/{batch_id}/results" if has_results else None,
        )

    def _read_result(self, row: dict[str, Any]) -> BatchResult:
        custom_id, result = row["custom_id"], row["result"]
        kind = result["type"]
        if kind == "succeeded":
            return answered(custom_id, self._calls.provider, result["message"])
        if kind in NOT_DONE:
            return not_done(custom_id, f"the batch was {kind} before its turn")
        error = result["error"]
        error = error if "error" in error else {"type": "error", "error": error}
        status = STATUS_OF_ERROR.get(error["error"]["type"], 500)
        return refused(custom_id, self._calls.provider, status, error)


def _encode(custom_id: str, body: dict[str, Any]) -> bytes:
    return orjson.dumps({"custom_id": custom_id, "params": body})
