"""A teacher for tests of batches: a real HTTP server that speaks the batch protocols of OpenAI and of Anthropic.

It echoes the id (`#0042`) found in each prompt, fails as it is told to, and keeps all its state in the object: a client
process may be killed and another come back. What it answers is billed, and every such request is logged.
"""

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from potstill.llm.batches import open_batches
from potstill.llm.batches.base import BatchProtocol, custom_id
from potstill.llm.endpoint import open_endpoint
from potstill.llm.messages import ChatRequest
from potstill.llm.providers import PROVIDERS
from tests.fake_teacher import MARK, QUICK
from tests.scripted_server import ScriptedHandler, ScriptedServer, wait_until

PATIENT = QUICK._replace(attempts=4)
"""When a call of `opened` is made again."""
DAY = 24 * 3600
CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class CallFault(NamedTuple):
    """What happens in place of the answer to a call."""

    kind: str
    status: int = 0
    code: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    bytes: int = 0
    said: str = "scripted"


FINE = CallFault("fine")
"""No fault: what comes after it in the script is meant for the next call."""
DROP_BEFORE = CallFault("drop before")
"""The connection ends, and nothing was done."""
DROP_AFTER = CallFault("drop after")
"""All was done, and then the connection ends."""
HANG_AFTER = CallFault("hang after")
"""All was done, and no answer comes."""
NO_JSON = CallFault("no json")
"""All was done, and the answer is none."""


def refuse(status: int, code: str = "", retry_after: str | None = None, said: str = "scripted") -> CallFault:
    """Nothing was done."""
    headers = () if retry_after is None else (("retry-after", retry_after),)
    return CallFault("refuse", status, code, headers, said=said)


def fail_after(status: int) -> CallFault:
    """All was done, and the answer is an error, as from a gateway that lost patience."""
    return CallFault("fail after", status)


def cut(after_bytes: int) -> CallFault:
    """A download that ends with its connection."""
    return CallFault("cut", bytes=after_bytes)


def short(after_bytes: int) -> CallFault:
    """A download that looks whole and is not."""
    return CallFault("short", bytes=after_bytes)


def redirect(url: str) -> CallFault:
    return CallFault("refuse", 307, headers=(("location", url),))


class Outcome(NamedTuple):
    """What comes of one request of a batch in place of an answer."""

    kind: str
    status: int = 0
    code: str = ""
    said: str = "scripted"


EMPTY = Outcome("empty")
"""An answer without a word, billed all the same."""
BAD_LINE = Outcome("bad line")
"""An answer, billed, whose line cannot be read."""
WITHOUT_USAGE = Outcome("without usage")
TIMED_OUT = Outcome("code", code="request_timeout")
"""OpenAI only."""


def error(status: int, code: str, said: str = "scripted") -> Outcome:
    """The same error as online; `code` is OpenAI's code or Anthropic's type."""
    return Outcome("error", status, code, said)


class Billed(NamedTuple):
    """One request that was answered."""

    batch_id: str
    custom_id: str
    mark: str
    input: int
    output: int


class Call(NamedTuple):
    operation: str
    """upload, create, state, list, results, cancel, or ask: online."""
    path: str
    headers: dict[str, str]


@dataclass
class Batch:
    """One batch as the server keeps it."""

    id: str
    speaks: str
    created_at: float
    requests: list[tuple[str, dict[str, Any]]]
    polls_left: int
    metadata: dict[str, str] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    cancel_at: float | None = None
    ended_at: float | None = None
    counts: Counter[str] = field(default_factory=Counter)
    output: bytes = b""
    failed: bytes = b""

    @property
    def is_ended(self) -> bool:
        return self.ended_at is not None


class BatchTeacher(ScriptedServer):
    """`with BatchTeacher() as teacher:` serves at `teacher.url`. Everything below may be changed while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.handler = _Handler
        self.key: str | None = None
        """What a client must show; None for no check."""
        self.polls = 0
        """How many times a batch says that it runs before it has ended."""
        self.runs_by_itself = False
        """Whether a look at the list brings batches further too."""
        self.late_lists = 0
        """So many of the next lists do not show the newest batch yet."""
        self.answer: Callable[[str], str] = lambda mark: f"answer to {mark}"
        self.outcomes: dict[str, Outcome] = {}
        """By mark."""
        self.answer_only: int | None = None
        """The first so many requests of a batch are answered; the rest expire, or are cancelled if that is asked for."""
        self.shuffled = False
        self.rejections: list[list[dict[str, Any]]] = []
        """Errors that OpenAI's validation finds in the next batches."""
        self.clock_offset = 0.0
        """Seconds that the server's clock is ahead."""
        self.results_are_gone = False
        """Whether the results of batches that have ended are kept no more."""
        self.results_host: str | None = None
        """Where Anthropic's results are said to lie, as `http://host:port`; None for here."""
        self.most_requests = {"openai": 50_000, "anthropic": 100_000}
        self.most_bytes = {"openai": 200_000_000, "anthropic": 256_000_000}
        self.longest_page = 100
        """Batches on one page of the list, however many are asked for."""
        self.calls: list[Call] = []
        self.batches: dict[str, Batch] = {}
        """In the order of their creation."""
        self.billed: list[Billed] = []
        self.files: dict[str, bytes] = {}
        """What was uploaded to OpenAI, by id."""
        self._faults: list[tuple[str, CallFault]] = []
        self._lock = threading.RLock()

    def fail_next(self, operation: str, *faults: CallFault) -> None:
        """Each of the next calls of this operation meets one of these."""
        with self._lock:
            self._faults.extend((operation, fault) for fault in faults)

    def operations(self) -> list[str]:
        return [call.operation for call in list(self.calls)]

    def billed_twice(self) -> dict[str, int]:
        """The prompts that were paid more than once, by mark."""
        counts = Counter(billed.mark for billed in list(self.billed))
        return {mark: count for mark, count in counts.items() if count > 1}

    def wait_for(self, operation: str) -> None:
        """Until a call of this operation has been carried out."""
        wait_until(lambda: operation in self.operations(), lambda: f"{self.operations()}: waited for {operation}", 20.0)

    def now(self) -> float:
        return time.time() + self.clock_offset

    def take_fault(self, operation: str) -> CallFault | None:
        with self._lock:
            for index, (name, fault) in enumerate(self._faults):
                if name == operation:
                    del self._faults[index]
                    return fault
        return None

    # what the protocols do

    def upload(self, content: bytes) -> dict[str, Any]:
        with self._lock:
            file_id = f"file-{len(self.files):04d}"
            self.files[file_id] = content
        return {"id": file_id, "object": "file", "bytes": len(content), "purpose": "batch", "status": "processed"}

    def create(
        self, speaks: str, requests: list[tuple[str, dict[str, Any]]], metadata: dict[str, str], errors: list[Any]
    ) -> Batch:
        with self._lock:
            prefix = "batch_" if speaks == "openai" else "msgbatch_"
            batch_id = f"{prefix}{len(self.batches):04d}"
            batch = Batch(batch_id, speaks, self.now(), requests, self.polls, metadata, errors)
            self.batches[batch_id] = batch
            return batch

    def create_from_file(self, order: dict[str, Any]) -> Batch:
        """OpenAI finds what is wrong with a file only after the batch is created."""
        content = self.files[order["input_file_id"]]
        requests, errors = [], []
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                row = json.loads(line)
                if row["method"] != "POST" or row["url"] != order["endpoint"]:
                    errors.append({"code": "url_mismatch", "message": "another url", "line": number})
                requests.append((row["custom_id"], row["body"]))
            except (ValueError, KeyError):
                errors.append({"code": "invalid_json_line", "message": "This line is not parseable.", "line": number})
        if len({custom_id for custom_id, _ in requests}) < len(requests):
            errors.append({"code": "duplicate_custom_id", "message": "a custom_id comes twice"})
        if len(requests) > self.most_requests["openai"]:
            errors.append({"code": "too_many_tasks", "message": "too many requests", "line": None})
        if self.rejections:
            errors.extend(self.rejections.pop(0))
        return self.create("openai", requests, order.get("metadata") or {}, errors)

    def ask(self, speaks: str, body: dict[str, Any]) -> bytes:
        """Online, outside of any batch: always an answer."""
        outcomes, self.outcomes = self.outcomes, {}
        online = Batch("online", speaks, self.now(), [], 0)
        _, line = self._line(online, "online", body, is_answered=True)
        self.outcomes = outcomes
        row = json.loads(line)
        return json.dumps(row["response"]["body"] if speaks == "openai" else row["result"]["message"]).encode()

    def poll(self, batch: Batch) -> None:
        """One look at a batch brings it one step further."""
        with self._lock:
            if batch.is_ended:
                return
            if batch.polls_left > 0:
                batch.polls_left -= 1
            else:
                self.finish(batch)

    def finish(self, batch: Batch) -> None:
        """Answer what is to be answered, and end."""
        with self._lock:
            batch.ended_at = self.now()
            if batch.errors:
                return
            answered = self.answer_only if self.answer_only is not None else len(batch.requests)
            if batch.cancel_at is not None and self.answer_only is None:
                answered = 0
            output, failed = [], []
            for index, (custom_id, body) in enumerate(batch.requests):
                is_good, line = self._line(batch, custom_id, body, is_answered=index < answered)
                (output if is_good or batch.speaks == "anthropic" else failed).append(line)
            if self.shuffled:
                random.Random(7).shuffle(output)
            batch.output, batch.failed = b"".join(output), b"".join(failed)

    def _line(self, batch: Batch, custom_id: str, body: dict[str, Any], *, is_answered: bool) -> tuple[bool, bytes]:
        found = MARK.search(str(body["messages"][-1]["content"]))
        mark = found.group() if found else ""
        outcome = self.outcomes.get(mark)
        line = _OPENAI if batch.speaks == "openai" else _ANTHROPIC
        if not is_answered:
            kind = "cancelled" if batch.cancel_at is not None else "expired"
            batch.counts[kind] += 1
            return False, _json_line(line.not_done(custom_id, kind))
        if outcome is not None and outcome.kind in {"error", "code"}:
            batch.counts["errored"] += 1
            return False, _json_line(line.failed(custom_id, outcome))
        tokens = (5 + len(str(body["messages"])) // 4, 3 + len(mark))
        batch.counts["succeeded"] += 1
        self.billed.append(Billed(batch.id, custom_id, mark, *tokens))
        if outcome == BAD_LINE:
            return True, b'{"custom_id": "' + custom_id.encode() + b'", \n'
        text = "" if outcome == EMPTY else self.answer(mark)
        return True, _json_line(line.answered(custom_id, text, None if outcome == WITHOUT_USAGE else tokens))


class _OPENAI:
    """Lines of OpenAI's output and error files."""

    @staticmethod
    def row(custom_id: str, response: Any, error: Any) -> dict[str, Any]:
        return {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": response, "error": error}

    @staticmethod
    def answered(custom_id: str, text: str, tokens: tuple[int, int] | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        body: dict[str, Any] = {"object": "chat.completion", "choices": [{"message": message, "finish_reason": "stop"}]}
        if tokens is not None:
            body["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
        return _OPENAI.row(custom_id, {"status_code": 200, "request_id": "req", "body": body}, None)

    @staticmethod
    def failed(custom_id: str, outcome: Outcome) -> dict[str, Any]:
        if outcome.kind == "code":
            return _OPENAI.row(custom_id, None, {"code": outcome.code, "message": "it took too long"})
        body = {"error": {"message": f"{outcome.said} {outcome.code}", "type": outcome.code, "code": outcome.code}}
        return _OPENAI.row(custom_id, {"status_code": outcome.status, "request_id": "req", "body": body}, None)

    @staticmethod
    def not_done(custom_id: str, kind: str) -> dict[str, Any]:
        return _OPENAI.row(custom_id, None, {"code": f"batch_{kind}", "message": "This request could not be executed."})


class _ANTHROPIC:
    """Lines of Anthropic's results."""

    @staticmethod
    def answered(custom_id: str, text: str, tokens: tuple[int, int] | None) -> dict[str, Any]:
        message: dict[str, Any] = {
            "id": f"msg_{custom_id}",
            "type": "message",
            "role": "assistant",
            "model": "fake-1",
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
        }
        if tokens is not None:
            message["usage"] = {"input_tokens": tokens[0], "output_tokens": tokens[1]}
        return {"custom_id": custom_id, "result": {"type": "succeeded", "message": message}}

    @staticmethod
    def failed(custom_id: str, outcome: Outcome) -> dict[str, Any]:
        inner = {"type": outcome.code, "message": f"{outcome.said} {outcome.code}"}
        return {"custom_id": custom_id, "result": {"type": "errored", "error": {"type": "error", "error": inner}}}

    @staticmethod
    def not_done(custom_id: str, kind: str) -> dict[str, Any]:
        return {"custom_id": custom_id, "result": {"type": "canceled" if kind == "cancelled" else kind}}


def _json_line(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _openai_batch(batch: Batch) -> dict[str, Any]:
    expired, cancelled = batch.counts["expired"], batch.counts["cancelled"]
    if not batch.is_ended:
        status = "cancelling" if batch.cancel_at is not None else "in_progress"
    elif batch.errors:
        status = "failed"
    else:
        status = "cancelled" if batch.cancel_at is not None else "expired" if expired else "completed"
    failed = batch.counts["errored"] + expired + cancelled
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "status": status,
        "created_at": int(batch.created_at),
        "expires_at": int(batch.created_at) + DAY,
        "errors": {"object": "list", "data": batch.errors} if batch.is_ended and batch.errors else None,
        "output_file_id": f"{batch.id}-output" if batch.output else None,
        "error_file_id": f"{batch.id}-error" if batch.failed else None,
        "request_counts": {"total": len(batch.requests), "completed": batch.counts["succeeded"], "failed": failed},
        "metadata": batch.metadata or None,
    }


def _anthropic_batch(batch: Batch, origin: str) -> dict[str, Any]:
    status = "ended" if batch.is_ended else "canceling" if batch.cancel_at is not None else "in_progress"
    counts = {name: batch.counts[name] for name in ("succeeded", "errored", "expired")}
    counts["canceled"] = batch.counts["cancelled"]
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": status,
        "request_counts": {"processing": 0 if batch.is_ended else len(batch.requests), **counts},
        "created_at": _rfc3339(batch.created_at),
        "expires_at": _rfc3339(batch.created_at + DAY),
        "ended_at": _rfc3339(batch.ended_at),
        "cancel_initiated_at": _rfc3339(batch.cancel_at),
        "archived_at": None,
        "results_url": f"{origin}/v1/messages/batches/{batch.id}/results" if batch.is_ended else None,
    }


def _rfc3339(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


class _RefusedError(Exception):
    def __init__(self, status: int, code: str, message: str = "scripted") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(ScriptedHandler[BatchTeacher]):
    def serve(self) -> None:
        content = self.read_body()
        url = urlsplit(self.path)
        parts = url.path.removeprefix("/v1/").split("/")
        self.speaks = "anthropic" if parts[0] == "messages" else "openai"
        parts = parts[1:] if self.speaks == "anthropic" else parts
        operation = self._operation(parts)
        fault = self.teacher.take_fault(operation)
        headers = self.read_headers()
        try:
            if fault is not None and fault.kind == "drop before":
                self._break_off()
                return
            self._check(fault, headers)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            body = self._carry_out(operation, parts, query, content)
        except _RefusedError as refusal:
            self.teacher.calls.append(Call(operation, self.path, headers))
            self.send(refusal.status, self._error(refusal), () if fault is None else fault.headers)
            return
        self.teacher.calls.append(Call(operation, self.path, headers))
        self._reply(body, fault)

    def _operation(self, parts: list[str]) -> str:
        match parts:
            case ["files"]:
                return "upload"
            case ["files", _, "content"] | ["batches", _, "results"]:
                return "results"
            case ["batches", _, "cancel"]:
                return "cancel"
            case ["batches", _]:
                return "state"
            case ["chat", "completions"] | []:
                return "ask"
        return "create" if self.command == "POST" else "list"

    def _check(self, fault: CallFault | None, headers: dict[str, str]) -> None:
        if fault is not None and fault.kind == "refuse":
            raise _RefusedError(fault.status, fault.code, fault.said)
        if self.speaks == "anthropic" and not headers.get("anthropic-version"):
            raise _RefusedError(400, "invalid_request_error", "anthropic-version: header is required")
        shown = headers.get("x-api-key") if self.speaks == "anthropic" else headers.get("authorization", "")[7:]
        if self.teacher.key is not None and shown != self.teacher.key:
            raise _RefusedError(401, "authentication_error" if self.speaks == "anthropic" else "invalid_api_key")

    def _error(self, refusal: _RefusedError) -> bytes:
        inner = {"type": refusal.code, "message": refusal.message}
        if self.speaks == "anthropic":
            return json.dumps({"type": "error", "error": inner}).encode()
        return json.dumps({"error": {**inner, "code": refusal.code}}).encode()

    def _carry_out(self, operation: str, parts: list[str], query: dict[str, str], content: bytes) -> bytes:
        teacher = self.teacher
        if operation == "upload":
            return json.dumps(teacher.upload(self._uploaded(content))).encode()
        if operation == "ask":
            return teacher.ask(self.speaks, json.loads(content))
        if operation == "create":
            batch = self._create(content)
        elif operation == "list":
            return self._list(query)
        else:
            batch = self._batch(parts[1].removesuffix("-output").removesuffix("-error"))
        if operation == "results":
            if self.teacher.results_are_gone:
                raise _RefusedError(404, "not_found_error", "no such file")
            return batch.failed if parts[1].endswith("-error") else batch.output
        if operation == "state":
            teacher.poll(batch)
        if operation == "cancel":
            if batch.is_ended:
                raise _RefusedError(409 if self.speaks == "openai" else 400, "invalid_request_error", "it has ended")
            batch.cancel_at = batch.cancel_at or teacher.now()
        return json.dumps(self._shown(batch)).encode()

    def _create(self, content: bytes) -> Batch:
        order = json.loads(content)
        if self.speaks == "openai":
            if order["completion_window"] != "24h" or order["input_file_id"] not in self.teacher.files:
                raise _RefusedError(400, "invalid_request_error", "no such window or file")
            return self.teacher.create_from_file(order)
        requests = [(row["custom_id"], row["params"]) for row in order["requests"]]
        ids = [custom_id for custom_id, _ in requests]
        if not 0 < len(ids) <= self.teacher.most_requests["anthropic"]:
            raise _RefusedError(400, "invalid_request_error", "requests: too few or too many")
        if len(set(ids)) < len(ids) or not all(CUSTOM_ID.fullmatch(custom_id) for custom_id in ids):
            raise _RefusedError(400, "invalid_request_error", "custom_id: malformed or twice")
        return self.teacher.create("anthropic", requests, {}, [])

    def _uploaded(self, content: bytes) -> bytes:
        """The file in a multipart form, whose purpose must be that of a batch."""
        if len(content) > self.teacher.most_bytes["openai"]:
            raise _RefusedError(413, "file_too_large")
        boundary = self.headers["content-type"].partition("boundary=")[2].encode()
        fields = {}
        for part in content.split(b"--" + boundary)[1:-1]:
            head, _, value = part.partition(b"\r\n\r\n")
            fields[re.findall(rb' name="(\w+)"', head)[0]] = value.removesuffix(b"\r\n")
        if fields.get(b"purpose") != b"batch":
            raise _RefusedError(400, "invalid_request_error", "purpose")
        return fields[b"file"]

    def _batch(self, batch_id: str) -> Batch:
        batch = self.teacher.batches.get(batch_id)
        if batch is None or batch.speaks != self.speaks:
            raise _RefusedError(404, "not_found_error", f"no batch {batch_id}")
        return batch

    def _list(self, query: dict[str, str]) -> bytes:
        """A page of batches, the newest first."""
        newest_first = [batch for batch in reversed(self.teacher.batches.values()) if batch.speaks == self.speaks]
        if self.teacher.late_lists > 0:
            self.teacher.late_lists -= 1
            del newest_first[:1]
        ids = [batch.id for batch in newest_first]
        after = query.get("after_id" if self.speaks == "anthropic" else "after")
        start = ids.index(after) + 1 if after else 0
        end = start + int(query.get("limit", 20))
        page = newest_first[start : min(end, start + self.teacher.longest_page)]
        if self.teacher.runs_by_itself:
            for batch in page:
                self.teacher.poll(batch)
        return json.dumps(
            {
                "data": [self._shown(batch) for batch in page],
                "first_id": page[0].id if page else None,
                "last_id": page[-1].id if page else None,
                "has_more": start + len(page) < len(ids),
            }
        ).encode()

    def _shown(self, batch: Batch) -> dict[str, Any]:
        if self.speaks == "openai":
            return _openai_batch(batch)
        shown = _anthropic_batch(batch, self.teacher.results_host or self.teacher.origin)
        if batch.is_ended and self.teacher.results_are_gone:
            shown |= {"archived_at": _rfc3339(self.teacher.now()), "results_url": None}
        return shown

    def _reply(self, body: bytes, fault: CallFault | None) -> None:
        kind = fault.kind if fault is not None else ""
        if kind == "drop after":
            self._break_off()
        elif kind == "hang after":
            self.teacher.hang()
            self._break_off()
        elif kind == "no json":
            self.send(200, b"<html>")
        elif kind == "fail after":
            assert fault is not None
            self.send(fault.status, b"{}")
        elif kind == "short":
            assert fault is not None
            self.send(200, body[: fault.bytes])
        elif kind == "cut":
            assert fault is not None
            self.wfile.write(self.head(200, len(body)) + body[: fault.bytes])
            self._break_off()
        else:
            self.send(200, body)

    def _break_off(self) -> None:
        time.sleep(0.02)  # what was sent must arrive before the connection ends
        self.drop()


@asynccontextmanager
async def opened(
    provider: str, teacher: BatchTeacher, *, timeout_seconds: float = 5.0, **options: Any
) -> AsyncIterator[BatchProtocol]:
    """The batches of a teacher; the pauses between attempts are left out."""

    async def at_once(_: float) -> None:
        pass

    endpoint = open_endpoint(provider, teacher.url, **options)
    async with open_batches(endpoint, timeout_seconds=timeout_seconds, policy=PATIENT, sleep=at_once) as batches:
        yield batches


def numbered_requests(provider: str, token: str, count: int, first: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """Requests of a batch that each hold an id of their own, `#0000` and on, which is the name in the custom id too."""
    return [
        (custom_id(token, f"{number:04d}"), PROVIDERS[provider].body(_asking(number)))
        for number in range(first, first + count)
    ]


def _asking(number: int) -> ChatRequest:
    messages = [{"role": "user", "content": f"Which one is #{number:04d}?"}]
    return ChatRequest(model="fake-1", messages=messages, max_tokens=16)
