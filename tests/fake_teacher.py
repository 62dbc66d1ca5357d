"""A teacher for tests: a real HTTP server that speaks Chat Completions and, at `/messages`, Anthropic's Messages API.

It fails as it is told to and logs every request.

Its normal answer echoes the id (`#0042`) found in the prompt, so that an answer beside the wrong prompt is noticed.
"""

import json
import re
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

from potstill.llm.retrying import RetryPolicy
from potstill.recipe import Price, Teacher
from potstill.records import Prompt
from potstill.teacher.rows import InputRow
from tests.scripted_server import ScriptedHandler, ScriptedServer, wait_until

PRICE = Price(input_per_million=Decimal("2.5"), output_per_million=Decimal(10))
QUICK = RetryPolicy(attempts=3, first_wait_seconds=0.001, longest_wait_seconds=0.01)
MARK = re.compile(r"#\d+")


class Fault(NamedTuple):
    """What happens in place of an answer."""

    name: str
    status: int | None = None
    """None where no whole response goes out."""
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    usage: tuple[int, int] | None = None
    """What the body says was billed: input, output tokens."""


def error(status: int, *, code: str | None = None, retry_after: str | None = None) -> Fault:
    """An error response in OpenAI's form."""
    body = json.dumps({"error": {"message": f"scripted {code or status}", "code": code}}).encode()
    return Fault(str(status), status, body, () if retry_after is None else (("retry-after", retry_after),))


def _reply(content: str | None, usage: tuple[int, int] | None, finish_reason: str = "stop") -> bytes:
    counted = {} if usage is None else {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}}
    message = {"role": "assistant", "content": content}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish_reason}], **counted}).encode()


def _message(text: str, usage: tuple[int, int]) -> bytes:
    """The same in Anthropic's form."""
    counted = {"input_tokens": usage[0], "output_tokens": usage[1]}
    content = [{"type": "text", "text": text}]
    reply = {"type": "message", "role": "assistant", "content": content, "stop_reason": "end_turn", "usage": counted}
    return json.dumps(reply).encode()


RATE_LIMITED = error(429, retry_after="0.01")
SERVER_ERROR = error(500)
BAD_REQUEST = error(400)
UNAUTHORISED = error(401)
FORBIDDEN = error(403)
NOT_FOUND = error(404)
QUOTA = error(429, code="insufficient_quota")
EMPTY = Fault("empty", 200, _reply("", (7, 3)), usage=(7, 3))
WITHOUT_USAGE = Fault("without usage", 200, _reply("well", None))
MALFORMED = Fault("malformed", 200, b"{not json")
RESET = Fault("reset")
CUT = Fault("cut")
CUT_BY_RESET = Fault("cut by reset")
HANG = Fault("hang")
TRICKLE = Fault("trickle")
"""A byte every 20 ms, so that no single read is late."""
GARBAGE = Fault("garbage")
"""Not HTTP at all."""


def cut_short(text: str) -> Fault:
    """An answer that reached its longest."""
    return Fault("cut short", 200, _reply(text, (7, 3), "length"), usage=(7, 3))


def redirect(url: str) -> Fault:
    return Fault("redirect", 307, b"", (("location", url),))


class Asked(NamedTuple):
    """One request as the server saw it, and what it did with it."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    mark: str
    """The id found in the last message; "" where there is none."""
    started_at: float
    fault: str | None = None
    status: int | None = None
    billed: tuple[int, int] = (0, 0)
    """Input and output tokens that the client was told of."""


Behaviour = Callable[[Asked], Fault | None]


class FakeTeacher(ScriptedServer):
    """`with FakeTeacher() as teacher:` serves at `teacher.url`.

    Args:
        behaviour: the fault of a request, or None for an answer; asked when nothing is left of `fail_next`.
        latency: seconds before each response.
        answer: the text of an answer, from the id in the prompt.
    """

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        latency: float = 0.0,
        answer: Callable[[str], str] = lambda mark: f"answer to {mark}",
    ) -> None:
        super().__init__()
        self.handler = _Handler
        self.behaviour = behaviour
        self.latency = latency
        self.answer = answer
        self.requests: list[Asked] = []
        self.num_trickled = 0
        """So many answers have trickled out whole."""
        self._script: list[Fault] = []
        self._lock = threading.Lock()
        self._count = 0

    def fail_next(self, *faults: Fault) -> None:
        """Each of the next requests meets one of these."""
        with self._lock:
            self._script.extend(faults)

    @property
    def billed(self) -> tuple[int, int]:
        """Input and output tokens over all readable replies."""
        requests = list(self.requests)
        return sum(asked.billed[0] for asked in requests), sum(asked.billed[1] for asked in requests)

    @property
    def billed_usd(self) -> Decimal:
        """What the readable replies cost at `PRICE`."""
        tokens = self.billed
        return (tokens[0] * PRICE.input_per_million + tokens[1] * PRICE.output_per_million) / 1_000_000

    def marks(self) -> list[str]:
        return [asked.mark for asked in list(self.requests)]

    def receive(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[Asked, Fault | None]:
        """Log the request and decide what becomes of it."""
        found = MARK.search(str(body["messages"][-1]["content"])) if body.get("messages") else None
        with self._lock:
            asked = Asked(self._count, path, headers, body, found.group() if found else "", time.monotonic())
            self._count += 1
            scripted = self._script.pop(0) if self._script else None
        fault = scripted or (self.behaviour(asked) if self.behaviour else None)
        billed = (fault.usage or (0, 0)) if fault else _usage(asked)
        status = fault.status if fault else 200
        with self._lock:
            self.requests.append(asked._replace(fault=fault and fault.name, status=status, billed=billed))
        self.hang(self.latency)
        return asked._replace(billed=billed), fault

    def wait_for(self, count: int, seconds: float = 60.0) -> None:
        """Until so many requests have come."""
        wait_until(
            lambda: len(self.requests) >= count, lambda: f"{len(self.requests)} of {count} requests came", seconds
        )


def _usage(asked: Asked) -> tuple[int, int]:
    return 5 + len(str(asked.body["messages"])) // 4, 3 + len(asked.mark)


class _Handler(ScriptedHandler[FakeTeacher]):
    def serve(self) -> None:
        """A followed redirect may arrive as a GET: it is logged as a request like any other."""
        asked, fault = self.teacher.receive(self.path, self.read_headers(), json.loads(self.read_body() or b"{}"))
        if self.command == "GET":
            self.send(200, b"{}")
            return
        if fault is None:
            self.send(200, self._answer(asked))
        elif fault.status is not None:
            self.send(fault.status, fault.body, fault.headers)
        else:
            self._fail(asked, fault)

    def _answer(self, asked: Asked) -> bytes:
        write = _message if asked.path.endswith("/messages") else _reply
        return write(self.teacher.answer(asked.mark), asked.billed)

    def _fail(self, asked: Asked, fault: Fault) -> None:
        """No whole response."""
        if fault == HANG:
            self.teacher.hang()
        elif fault == TRICKLE:
            body = self._answer(asked)
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(0.02)
            self.teacher.num_trickled += 1
        elif fault == GARBAGE:
            self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        elif fault in {CUT, CUT_BY_RESET}:
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n" + b'{"choices": [')
            time.sleep(0.05)  # what was sent must arrive before the connection ends
        self.drop(is_reset=fault in {RESET, CUT_BY_RESET})


def numbered_rows(count: int, first: int = 0) -> list[InputRow]:
    """Prompts that each hold an id of their own, `#0000` and on."""
    return [row(f"Which one is #{number:04d}?", f"row-{number}") for number in range(first, first + count)]


def row(text: str, row_id: str) -> InputRow:
    prompt = Prompt(
        prompt_id=f"p:{text}",
        messages=[{"role": "user", "content": text}],
        task_kind="classification",
        workload="",
        group_id=text,
        split="train",
        source="test:1",
    )
    return InputRow(row_id, prompt)


def make_teacher(url: str, **fields: Any) -> Teacher:
    """The teacher section that asks this server."""
    defaults: dict[str, Any] = {
        "provider": "openai_compatible",
        "model": "fake-1",
        "base_url": url,
        "price": PRICE,
        "max_tokens": 64,
        "concurrency": 8,
        "timeout_seconds": 20,
    }
    return Teacher(**(defaults | fields))
