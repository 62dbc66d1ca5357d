"""OpenAI's Batch API: a JSONL file goes up, a file of answers and a file of errors come down.

Source: OpenAI API reference, "Batch" (the batch object, the request input and output objects) and "Files"; guide "Batch
API" (limits; of an expired or cancelled batch the completed requests are charged).
"""

import time
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Any, NamedTuple

import orjson

from potstill.errors import TransientTeacherError
from potstill.llm.batches.base import CLOCK_SKEW_SECONDS, LONGEST_CUSTOM_ID, BatchResult, BatchState, Limits
from potstill.llm.batches.calls import Calls, before_creation, needing_batches
from potstill.llm.batches.lines import answered, malformed, not_done, read_lines, refused
from potstill.llm.batches.spool import Frame, spooled
from potstill.llm.providers.base import Failure

ENDPOINT = "/v1/chat/completions"
ENDED = frozenset({"failed", "completed", "expired", "cancelled"})
NOT_DONE = frozenset({"batch_expired", "batch_cancelled"})
STATUS_OF_CODE = {"token_limit_exceeded": 429, "model_not_found": 404}
METADATA_KEY = "potstill"
PAGE = 100
JSON_LINES = Frame(b"", b"\n", b"\n")


class _Page(NamedTuple):
    states: list[tuple[BatchState, str | None]]
    """With the token of each."""
    has_more: bool


class OpenAIBatches:
    """`BatchProtocol` of OpenAI and of servers that speak the same.

    A batch carries its token as metadata, so that `find` is certain. It sees a batch as soon as the list shows it; the
    reference does not say how soon that is.
    """

    limits = Limits(requests=50_000, bytes=190_000_000)
    """OpenAI takes 200 MB a file, and does not say which MB."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def size(self, body: dict[str, Any]) -> int:
        return len(_encode("x" * LONGEST_CUSTOM_ID, body)) + len(JSON_LINES.between)

    async def submit(self, requests: Iterable[tuple[str, dict[str, Any]]], token: str) -> BatchState:
        started = time.time()
        async with spooled(requests, token, _encode, JSON_LINES, self.limits) as spool:
            form = {"purpose": "batch"}
            with needing_batches(), before_creation():
                file_id = await self._calls.retried(  # a file that is uploaded twice costs nothing
                    lambda: self._calls.connection.call("POST", "/files", _file_id, spool=spool, form=form)
                )
            count = spool.requests
        order = {
            "input_file_id": file_id,
            "endpoint": ENDPOINT,
            "completion_window": "24h",
            "metadata": {METADATA_KEY: token},
        }
        return await self._calls.created(
            lambda: self._calls.connection.call("POST", "/batches", self._read_state, json=order),
            lambda: self.find(token, started, count),
        )

    async def state(self, batch_id: str) -> BatchState:
        return await self._calls.get(f"/batches/{batch_id}", self._read_state)

    async def results(self, state: BatchState) -> AsyncIterator[BatchResult]:
        answers = state.counts.get("completed", 0)
        if answers and state.answers_at is None:
            raise TransientTeacherError(
                f"batch {state.id} has answers and no file of them yet: run the same again later"
            )
        for location, least in ((state.answers_at, answers), (state.errors_at, 0)):
            if location is not None:
                async for result in read_lines(await self._calls.download(location, least), self._read_result):
                    yield result

    async def cancel(self, batch_id: str) -> BatchState:
        return await self._calls.cancelled(f"/batches/{batch_id}", self._read_state)

    async def find(
        self,
        token: str,
        since: float,
        requests: int,  # noqa: ARG002 - the token says it all
        known: Collection[str] = frozenset(),
    ) -> BatchState | None:
        after: dict[str, str] = {}
        while True:
            page = await self._calls.listed("/batches", self._read_page, limit=PAGE, **after)
            for state, found in page.states:
                if found == token and state.id not in known:
                    return state
            if not page.has_more or _all_older(page.states, since - CLOCK_SKEW_SECONDS):
                return None
            after = {"after": page.states[-1][0].id}

    def _read_page(self, body: Any) -> _Page:
        states = [(self._read_state(batch), (batch.get("metadata") or {}).get(METADATA_KEY)) for batch in body["data"]]
        return _Page(states, bool(states) and bool(body.get("has_more")))

    def _read_state(self, body: Any) -> BatchState:
        said = str(body["status"])
        files = body if said in ENDED else {}
        errors = (body.get("errors") or {}).get("data") or []
        return BatchState(
            id=str(body["id"]),
            status="ended" if said in ENDED else "running",
            said=said,
            counts={name: int(count or 0) for name, count in (body.get("request_counts") or {}).items()},
            created_at=float(body["created_at"]),
            answers_at=_content(files.get("output_file_id")),
            errors_at=_content(files.get("error_file_id")),
            rejection=self._rejection(errors) if said == "failed" else None,
            rejected_lines=tuple(sorted({error["line"] for error in errors if error.get("line") is not None})),
        )

    def _rejection(self, errors: list[dict[str, Any]]) -> Failure:
        """Why the whole batch was refused: its lines are at fault, or the account, or the queue is full for now."""
        if not errors:
            return Failure("run", "the batch was refused and nobody said why: see the provider's console")
        first = errors[0]
        code, line = str(first.get("code")), first.get("line")
        status = STATUS_OF_CODE.get(code, 400)
        failure = self._calls.provider.read_error(status, {"error": first}, {})
        cause = "run" if failure.cause == "request" and line is None else failure.cause
        where = "" if line is None else f" in line {line}" + (f" and {len(errors) - 1} more" if len(errors) > 1 else "")
        return failure._replace(
            cause=cause, message=f"batch refused ({code}{where}): {str(first.get('message'))[:200]}"
        )

    def _read_result(self, row: dict[str, Any]) -> BatchResult:
        custom_id, response = row["custom_id"], row.get("response")
        if response is not None:
            status = int(response["status_code"])
            if status == 200:
                return answered(custom_id, self._calls.provider, response["body"])
            return refused(custom_id, self._calls.provider, status, response.get("body"))
        error = row["error"]
        code, message = str(error["code"]), str(error.get("message"))[:200]
        if code in NOT_DONE:
            return not_done(custom_id, f"{code}: {message}")
        return malformed(custom_id, f"{code}: {message}")


def _encode(custom_id: str, body: dict[str, Any]) -> bytes:
    return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body})


def _file_id(body: Any) -> str:
    return str(body["id"])


def _content(file_id: str | None) -> str | None:
    return f"/files/{file_id}/content" if file_id else None


def _all_older(states: list[tuple[BatchState, str | None]], than: float) -> bool:
    return all(state.created_at < than for state, _ in states)
