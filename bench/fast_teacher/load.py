"""As many requests a second as a hand-written client can ask: the speed of the fake teacher itself.

python -m bench.fast_teacher.load REQUESTS CONNECTIONS    one sample, with a teacher of its own
"""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import orjson

from bench.fast_teacher.running import running
from bench.measuring import Benchmark, Sample, Taken, take_in_child
from bench.prompts import prompt_text

REQUESTS = 50_000
CONNECTIONS = 32


class Asker(asyncio.Protocol):
    """One connection that asks for one answer after another, and reads no more of a reply than its end."""

    def __init__(self, requests: Iterator[bytes], ended: asyncio.Future[None]) -> None:
        self._requests = requests
        self._ended = ended
        self._missing = 0
        self.answers = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        if not self._missing:
            end = data.index(b"\r\n\r\n") + 4
            length = data.index(b"content-length: ") + 16
            self._missing = end + int(data[length : data.index(b"\r", length)])
        self._missing -= len(data)
        if not self._missing:
            self.answers += data.startswith(b"HTTP/1.1 200")
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_exception(exc or ConnectionError("the teacher closed the connection"))

    def _ask(self) -> None:
        request = next(self._requests, None)
        if request is not None:
            self._transport.write(request)
        elif not self._ended.done():
            self._ended.set_result(None)


async def ask(port: int, count: int, connections: int) -> int:
    """Ask for so many answers, each of a prompt of its own; returns how many came."""
    loop = asyncio.get_running_loop()
    requests = map(_request, range(count))
    askers: list[Asker] = []
    ends: list[asyncio.Future[None]] = []
    for _ in range(connections):
        ends.append(loop.create_future())
        _, asker = await loop.create_connection(lambda: Asker(requests, ends[-1]), "127.0.0.1", port)
        askers.append(asker)
    await asyncio.gather(*ends)
    return sum(asker.answers for asker in askers)


def _request(number: int) -> bytes:
    body = orjson.dumps(
        {"model": "fake-1", "max_tokens": 256, "messages": [{"role": "user", "content": prompt_text(number)}]}
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def main() -> None:
    """One sample in this process; its last line is a `Taken` as JSON."""
    count, connections = map(int, sys.argv[1:])
    with running() as teacher:
        port = int(teacher.url.split(":")[2].partition("/")[0])
        started, before = time.perf_counter(), teacher.cpu_seconds()
        answers = asyncio.run(ask(port, count, connections))
        wall, cpu = time.perf_counter() - started, teacher.cpu_seconds() - before
        stats = teacher.stats()
    values = {
        "requests_per_second": answers / wall,
        "teacher_cpu_us_per_request": 1e6 * cpu / answers,
        "requests_per_second_of_a_core": answers / cpu,
    }
    evidence = [answers, stats["answered"], stats["billed"]]
    print(orjson.dumps({"values": values, "evidence": evidence}).decode())


@contextmanager
def _open() -> Iterator[Callable[[str], Taken]]:
    yield lambda _: take_in_child("bench.fast_teacher.load", str(REQUESTS), str(CONNECTIONS))


def _check(samples: Sequence[Sample]) -> dict[str, Any]:
    if any(set(sample.evidence) != {REQUESTS} for sample in samples):
        raise ValueError(f"answers and bills differ from the requests: {[sample.evidence for sample in samples]}")
    return {"answers": REQUESTS}


BENCHMARK = Benchmark(
    name="fast_teacher",
    about="the fake teacher serves at least 10,000 requests a second on one core, its log on",
    setting={"requests": REQUESTS, "connections": CONNECTIONS, "client": "an asyncio protocol by hand"},
    contenders=("fast_teacher",),
    comparisons=(),
    repeats=3,
    open=_open,
    check=_check,
)

if __name__ == "__main__":
    main()
