"""What may have been billed, and what certainly was not, when no whole answer comes."""

import asyncio
import gzip
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from potstill.llm.client import Attempt, ChatClient
from potstill.llm.endpoint import open_endpoint
from potstill.llm.messages import ChatRequest, Reply
from potstill.llm.providers.base import Failure
from tests.fake_teacher import CUT_BY_RESET, GARBAGE, RESET, TRICKLE, WITHOUT_USAGE, FakeTeacher, Fault

REQUEST = ChatRequest(model="m", messages=[{"role": "user", "content": "Which is #0007?"}], max_tokens=9)
HALF_A_GZIP = gzip.compress(b'{"choices": []}')[:12]


async def ask(url: str, timeout_seconds: float = 5.0) -> Attempt:
    async with ChatClient(open_endpoint("openai_compatible", url), timeout_seconds=timeout_seconds) as client:
        return await client.ask(client.encode(REQUEST))


@pytest.mark.parametrize(
    "fault",
    [CUT_BY_RESET, GARBAGE, Fault("broken gzip", 200, HALF_A_GZIP, (("content-encoding", "gzip"),))],
    ids=lambda fault: fault.name,
)
async def test_an_answer_that_was_lost_on_its_way_may_be_billed(teacher: FakeTeacher, fault: Fault) -> None:
    teacher.fail_next(fault)
    attempt = await ask(teacher.url)
    assert isinstance(attempt.outcome, Failure)
    assert (attempt.outcome.cause, attempt.may_be_billed) == ("transient", True)
    assert "within" not in attempt.outcome.message, "nothing was late"


async def test_an_answer_that_trickles_in_is_given_up_at_the_timeout_of_the_whole_request() -> None:
    with FakeTeacher(answer=lambda _: "word " * 100) as teacher:
        teacher.fail_next(TRICKLE)
        attempt = await ask(teacher.url, timeout_seconds=0.4)
        assert teacher.num_trickled == 0, "it was not waited for to its end, which is 10 s later"
    assert isinstance(attempt.outcome, Failure)
    assert attempt.outcome.message == "no answer within 0.4 s"
    assert attempt.may_be_billed


async def test_a_server_that_speaks_no_tls_was_never_asked(teacher: FakeTeacher) -> None:
    attempt = await ask(teacher.url.replace("http://", "https://"))
    assert isinstance(attempt.outcome, Failure)
    assert attempt.outcome.message.startswith("no connection: [SSL: ")
    assert not attempt.may_be_billed
    assert teacher.requests == []


@contextmanager
def full_house() -> Iterator[str]:
    """A server whose queue is full: connections to it are neither taken nor refused."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for guest in waiting:
            guest.setblocking(False)
            guest.connect_ex(server.getsockname())
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        finally:
            for guest in waiting:
                guest.close()


async def test_a_connection_that_is_never_made_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.llm.client.CONNECT_SECONDS", 0.2)
    with full_house() as url:
        attempt = await ask(url)
    assert isinstance(attempt.outcome, Failure)
    assert attempt.outcome.message == "no connection: none was made within 0.2 s"
    assert not attempt.may_be_billed


@pytest.mark.parametrize("status", [201, 202, 204])
async def test_another_kind_of_success_without_an_answer_is_no_refusal_of_the_prompt(
    teacher: FakeTeacher, status: int
) -> None:
    teacher.fail_next(Fault("accepted", status, b""))
    attempt = await ask(teacher.url)
    assert isinstance(attempt.outcome, Failure)
    assert (attempt.outcome.cause, attempt.may_be_billed) == ("transient", True)


@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "packed"])
async def test_a_reply_that_never_ends_is_cut_off_before_it_fills_the_memory(
    teacher: FakeTeacher, monkeypatch: pytest.MonkeyPatch, is_packed: bool
) -> None:
    monkeypatch.setattr("potstill.llm.client.LONGEST_REPLY_BYTES", 2**20)
    body = b" " * (8 * 2**20) + WITHOUT_USAGE.body
    packed = (gzip.compress(body), (("content-encoding", "gzip"),))
    teacher.fail_next(Fault("long", 200, *(packed if is_packed else (body,))))
    attempt = await ask(teacher.url)
    assert isinstance(attempt.outcome, Failure)
    assert attempt.outcome.message == "malformed reply: longer than 1 MiB"
    assert (attempt.outcome.cause, attempt.http_status, attempt.may_be_billed) == ("transient", 200, True)


async def test_a_request_that_a_used_connection_swallowed_is_not_sent_twice(teacher: FakeTeacher) -> None:
    async with ChatClient(open_endpoint("openai_compatible", teacher.url)) as client:
        assert isinstance((await client.ask(client.encode(REQUEST))).outcome, Reply)
        teacher.fail_next(RESET)
        attempt = await client.ask(client.encode(REQUEST))
    assert isinstance(attempt.outcome, Failure)
    assert (attempt.outcome.cause, attempt.may_be_billed) == ("transient", True)
    assert len(teacher.requests) == 2


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used_again() -> None:
    connections = 0

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"}]")
        body = b'{"choices": [{"message": {"content": "yes"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()

    server = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    endpoint = open_endpoint("openai_compatible", "http://{}:{}".format(*server.sockets[0].getsockname()))
    async with server, ChatClient(endpoint) as client:
        for _ in range(3):
            assert isinstance((await client.ask(client.encode(REQUEST))).outcome, Reply)
            await asyncio.sleep(0.05)
    assert connections == 3
