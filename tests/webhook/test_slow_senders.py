"""Senders that are slow, silent or too many: what they may hold of the receiver, and that others are answered."""

import asyncio
import http.client
import random
import socket
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from urllib.parse import urlsplit

import pytest

from potstill.errors import InboxError
from potstill.webhook import connections
from potstill.webhook.bodies import Body, Room
from tests.virtual_time import run_virtually
from tests.webhook.test_receiver import prompts

pytestmark = pytest.mark.flow

LIMIT = 250_000
SOON_SECONDS = 10.0
"""On a busy machine. Whoever is held up by a body or a copy waits 20 s or more; an answer takes hundredths of a second."""


@contextmanager
def slow_senders(url: str, count: int, sent: int, declared: int = LIMIT) -> Iterator[list[socket.socket]]:
    """Unsigned ones that have sent so much of their body, and then nothing more."""
    address = (urlsplit(url).hostname, urlsplit(url).port)
    head = f"POST /inbox/demo HTTP/1.1\r\nhost: x\r\ncontent-length: {declared}\r\n\r\n".encode()
    with ExitStack() as stack:
        senders = []
        for _ in range(count):
            sender = stack.enter_context(socket.create_connection(address, timeout=10))
            sender.sendall(head)
            with suppress(OSError):  # cut off already
                sender.sendall(b"x" * sent)
            senders.append(sender)
        time.sleep(0.2)
        yield senders


def status_of(sender: socket.socket) -> int | None:
    """Of its answer; None where there is none yet, 0 where the connection was closed without."""
    sender.setblocking(False)
    try:
        return int(sender.recv(65536).split()[1])
    except BlockingIOError:
        return None
    except (ConnectionResetError, IndexError):
        return 0


@pytest.mark.parametrize("sent", [0, 1, 60_000])
def test_slow_unsigned_senders_hold_up_nobody(receiver, sent) -> None:
    with receiver(max_body_bytes=LIMIT) as sender, slow_senders(sender.url, 100, sent) as slow:
        began = time.monotonic()
        answers = [sender.send(f"m{number}", prompts(number)).status_code for number in range(5)]
        assert answers == [202] * 5
        assert time.monotonic() - began < SOON_SECONDS
        assert {status_of(one) for one in slow} == {None}, "they have their time: there is room for all"


def test_where_bodies_fill_the_memory_the_first_is_cut_off_and_the_bound_holds(receiver) -> None:
    limit = 8 * LIMIT
    bound, buffers = 32 * limit, 96 * 330_000
    tracemalloc.start()
    try:
        with receiver(max_body_bytes=limit) as sender, slow_senders(sender.url, 96, limit - 1, limit) as slow:
            assert sender.send("m0", prompts(0)).status_code == 202
            assert tracemalloc.get_traced_memory()[1] < bound + buffers, "three times as much was sent"
            big = prompts("y" * (limit - 1000))
            began = time.monotonic()
            assert sender.send("m1", big).status_code == 202
            assert time.monotonic() - began < SOON_SECONDS
            cut = [status_of(one) for one in slow]
        assert cut[:60] == [503] * 60
        assert cut.count(None) >= 30, "no more than had to be"
    finally:
        tracemalloc.stop()


def test_there_is_always_room_for_another_connection(receiver, monkeypatch) -> None:
    monkeypatch.setattr(connections, "MOST", 20)
    with receiver(max_body_bytes=LIMIT) as sender, slow_senders(sender.url, 15, 5) as slow, ExitStack() as stack:
        address = (urlsplit(sender.url).hostname, urlsplit(sender.url).port)
        silent = [stack.enter_context(socket.create_connection(address, timeout=5)) for _ in range(50)]
        assert sender.send("m1", prompts(1)).status_code == 202
        assert {status_of(one) for one in slow} == {0}, "the longest-waiting ones were closed"
        assert [status_of(one) for one in silent[-15:]] == [None] * 15
        assert len([1 for one in silent if status_of(one) is None]) <= 20


def test_files_that_take_long_to_copy_hold_up_no_inline_webhook(receiver, tmp_path, monkeypatch) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def read_slowly(*_: object) -> Iterator[bytes]:
        begun.set()
        go_on.wait(20)
        yield b'{"messages": [{"role": "user", "content": "x"}]}'

    monkeypatch.setattr("potstill.webhook.receiver.read_lines", read_slowly)
    (tmp_path / "x.jsonl").write_text("x")
    named = {"uri": (tmp_path / "x.jsonl").as_uri()}
    with receiver(references={"prefixes": [tmp_path.as_uri()]}) as sender, ThreadPoolExecutor(40) as pool:
        copies = [pool.submit(sender.send, f"r{number}", named) for number in range(40)]
        assert begun.wait(5)
        while sum(copy.done() for copy in copies) < 24:
            time.sleep(0.01)
        began = time.monotonic()
        assert sender.send("m1", prompts(1)).status_code == 202
        assert time.monotonic() - began < SOON_SECONDS
        go_on.set()
        answers = [copy.result() for copy in copies]
    assert sorted(answer.status_code for answer in answers) == [202] * 16 + [503] * 24
    assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 503} == {"30"}


@pytest.mark.parametrize("sent", [b"", b"POST /inbox/demo HT", b"POST /inbox/demo HTTP/1.1\r\nhost: x\r\n"])
def test_a_connection_without_a_request_is_closed(receiver, monkeypatch, sent) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    with receiver() as sender:
        address = urlsplit(sender.url)
        with socket.create_connection((address.hostname, address.port), timeout=8) as raw:
            for byte in sent:  # a byte now and then is no request
                raw.sendall(bytes([byte]))
            assert raw.recv(100) == b""


def test_a_connection_may_bear_one_request_after_another(receiver, monkeypatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    with receiver() as sender:
        address = urlsplit(sender.url)
        with closing(http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)) as connection:
            connection.connect()
            first = connection.sock
            for pause in (0, 0, 1.5):
                time.sleep(pause)
                connection.request("GET", "/health")
                answer = connection.getresponse()
                assert (answer.status, answer.read()) == (200, b'{"status":"ok"}')
                assert connection.sock is first, "the time for a first request was over, and ended nothing"


def test_whatever_comes_in_whichever_order_no_more_is_held_than_there_is_room_and_some_get_through() -> None:
    rng = random.Random(7)
    room = Room(1000)
    held: dict[Body, int] = {}
    worst, outcomes = 0, []

    async def stream(body: Body) -> AsyncIterator[bytes]:
        for _ in range(rng.randint(1, 12)):
            yield b"x" * rng.randint(0, 40)
            nonlocal worst
            held[body] = sum(map(len, body._pieces))
            worst = max(worst, sum(sum(map(len, one._pieces)) for one in held))
            assert room.taken == sum(one.num_bytes for one in held)
            await asyncio.sleep(rng.random() / 200)

    async def receive() -> None:
        with room.open() as body:
            held[body] = 0
            try:
                await body.read(stream(body), 400, 0.05)
                outcomes.append("whole")
                await asyncio.sleep(rng.random() / 200)
            except (InboxError, TimeoutError) as error:
                outcomes.append(type(error).__name__)

    async def receive_many(_: object) -> None:
        await asyncio.gather(*(receive() for _ in range(300)))

    run_virtually(receive_many)
    assert worst <= 1000
    assert room.taken == 0
    assert len(outcomes) == 300
    assert outcomes.count("whole") >= 10
    assert outcomes.count("InboxError") >= 10


def test_the_bodies_of_a_burst_that_is_larger_than_the_room_are_cut_off_only_as_far_as_they_must() -> None:
    room = Room(4 * 100)

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 10
            await asyncio.sleep(0.001)

    async def receive() -> str:
        with room.open() as body:
            try:
                await body.read(stream(), 100, 5)
            except InboxError:
                return "cut off"
            await asyncio.sleep(0.01)
            return "whole"

    async def receive_many(_: object) -> list[str]:
        return await asyncio.gather(*(receive() for _ in range(6)))

    assert sorted(run_virtually(receive_many)) == ["cut off"] * 2 + ["whole"] * 4
