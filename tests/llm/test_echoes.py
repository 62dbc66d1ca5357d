"""A server may send a key back: nothing that reads its reply ever sees it."""

import base64
import json
import threading
from collections.abc import AsyncIterator, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest

from potstill.errors import NotAuthorisedError
from potstill.llm.batches import open_batches
from potstill.llm.client import ChatClient
from potstill.llm.echoes import MASK, KeyMask
from potstill.llm.endpoint import open_endpoint
from potstill.llm.messages import ChatRequest, Reply
from potstill.llm.providers.base import Failure
from tests.fake_teacher import FakeTeacher, Fault

KEY = "sk-canary/Qz+7_=longer<than>most"
IN_URL = quote(KEY, safe="")
REQUEST = ChatRequest(model="m", messages=[{"role": "user", "content": "Which one is #0001?"}], max_tokens=8)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)


async def ask(teacher: FakeTeacher) -> Reply | Failure:
    async with ChatClient(open_endpoint("openai_compatible", teacher.url, api_key_env="MY_KEY")) as client:
        return (await client.ask(client.encode(REQUEST))).outcome


@pytest.mark.parametrize(
    "form",
    [KEY, IN_URL, IN_URL.replace("%2F", "%2f").replace("%2B", "%2b").replace("%3D", "%3d"), KEY.replace("/", "\\/")],
    ids=["plain", "percent", "percent in small letters", "JSON of PHP"],
)
def test_the_key_is_masked_in_every_form(form: str) -> None:
    form = form.replace("%3C", "%3c").replace("%3E", "%3e") if "%2f" in form else form
    assert KeyMask(KEY).clean(f"<{form}>, {form}".encode()) == f"<{MASK}>, {MASK}".encode()
    assert MASK in KeyMask(KEY).clean_text(form)


@pytest.mark.parametrize("before", ["", "u", "us", "user:", "Bearer "])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_the_key_is_masked_in_base64_wherever_it_begins(before: str, encode: Callable[[bytes], bytes]) -> None:
    sent = encode(f"{before}{KEY}, and more".encode())
    cleaned = KeyMask(KEY).clean(sent)
    assert MASK.encode() in cleaned
    left = cleaned.replace(MASK.encode(), b"")
    assert len(left) < len(sent) - 4 * (len(KEY) - 2) // 3, "no more of it is left than its neighbours' characters"


def test_a_reply_without_the_key_is_left_as_it_is() -> None:
    text = "nothing of the kind: sk-canary/Qz+7_=longer<than>mos"
    assert KeyMask(KEY).clean(text.encode()) == text.encode()
    assert KeyMask(None).clean(text.encode()) == text.encode()


def test_a_placeholder_may_stand_in_an_answer() -> None:
    assert KeyMask("EMPTY").clean(b"The list is EMPTY.") == b"The list is EMPTY."


def test_what_json_escapes_is_masked_too() -> None:
    escaped = "".join(f"\\u{ord(char):04x}" for char in KEY)
    assert KeyMask(KEY).read_json(f'{{"said": "{escaped}", "n": 1}}'.encode()) == {"said": MASK, "n": 1}
    assert KeyMask(KEY).read_json(b'{"said": "caf\\u00e9"}') == {"said": "café"}


async def test_the_key_is_masked_in_lines_wherever_they_are_cut() -> None:
    whole = f"first\n{KEY} second\nthird {KEY}".encode()

    async def chunks(size: int) -> AsyncIterator[bytes]:
        for start in range(0, len(whole), size):
            yield whole[start : start + size]

    for size in (1, 7, 1000):
        cleaned = b"".join([part async for part in KeyMask(KEY).clean_lines(chunks(size))])
        assert cleaned == f"first\n{MASK} second\nthird {MASK}".encode()


async def test_an_error_that_quotes_the_key_is_kept_without_it() -> None:
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}."}}).encode()
    with FakeTeacher() as teacher:
        teacher.fail_next(Fault("echo", 401, body))
        outcome = await ask(teacher)
    assert isinstance(outcome, Failure)
    assert f"Incorrect API key provided: {MASK}" in outcome.message
    assert teacher.requests[0].headers["authorization"] == f"Bearer {KEY}"


async def test_a_quote_that_is_cut_holds_no_part_of_the_key() -> None:
    body = json.dumps({"error": {"message": "x" * 180 + KEY}}).encode()
    with FakeTeacher() as teacher:
        teacher.fail_next(Fault("echo", 400, body))
        outcome = await ask(teacher)
    assert isinstance(outcome, Failure)
    assert "sk-canary" not in outcome.message


async def test_an_answer_that_quotes_the_key_is_kept_without_it() -> None:
    with FakeTeacher(answer=lambda mark: f"your key is {KEY}") as teacher:
        outcome = await ask(teacher)
    assert isinstance(outcome, Reply)
    assert outcome.text == outcome.message["content"] == f"your key is {MASK}"


async def test_garbage_in_place_of_http_that_quotes_the_key_is_kept_without_it() -> None:
    garbage = Fault("status", 200, b"", (("broken\x00header", KEY),))
    with FakeTeacher() as teacher:
        teacher.fail_next(garbage)
        outcome = await ask(teacher)
    assert isinstance(outcome, Failure)
    assert f"broken\\\\x00header: {MASK}" in outcome.message


class EchoingServer(BaseHTTPRequestHandler):
    """It refuses every GET, and quotes what it was sent."""

    def do_GET(self) -> None:
        said = f"no access with {self.headers['x-api-key']}"
        body = json.dumps({"error": {"type": "permission_error", "message": said}}).encode()
        self.send_response(403)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        pass


async def test_a_batch_endpoint_that_quotes_the_key_is_quoted_without_it() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), EchoingServer) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        async with open_batches(open_endpoint("anthropic", url, api_key_env="MY_KEY")) as batches:
            with pytest.raises(NotAuthorisedError) as raised:
                await batches.state("msgbatch_1")
        server.shutdown()
    assert f"no access with {MASK}:" in str(raised.value)
