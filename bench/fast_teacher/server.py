"""HTTP/1.1 by hand on asyncio: no framework, so that one core serves more than any client of it can ask."""

import asyncio
import re
import signal
import socket
import struct
from typing import Any, NamedTuple, cast

import orjson

from bench.fast_teacher.dialects import DIALECTS
from bench.fast_teacher.settings import Settings
from bench.fast_teacher.teacher import Reply, Teacher, response

LONGEST_BODY = 8 * 2**20
LONGEST_HEAD = 64 * 2**10
BACKLOG = 4096
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
CONTINUE = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)
HEAD_END = b"\r\n\r\n"


class Request(NamedTuple):
    head: bytes
    body: bytes


class Connection(asyncio.Protocol):
    """One client. Requests that come before the last reply went out wait for it, so that replies keep their order."""

    def __init__(self, teacher: Teacher, loop: asyncio.AbstractEventLoop) -> None:
        self._teacher = teacher
        self._loop = loop
        self._buffer = bytearray()
        self._needed = 0
        """The buffer's length before which there is no whole request in it."""
        self._waits = False
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._closing = True
        self._buffer.clear()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._waits:
            self._serve()

    def _serve(self) -> None:
        """Answer what is in the buffer, as far as it goes."""
        while not self._waits and not self._closing and (request := self._take()):
            reply = self._reply(*request)
            if CLOSE.search(request.head):
                reply = reply._replace(closes=True)
            self._teacher.begin()
            if reply.latency_seconds:
                self._waits = True
                self._loop.call_later(reply.latency_seconds, self._send_late, reply)
            else:
                self._send_now(reply)

    def _take(self) -> Request | None:
        """The first request in the buffer once all of it has come; one that will never do is answered at once."""
        if len(self._buffer) < self._needed:
            return None
        end = self._buffer.find(HEAD_END)
        if end < 0:
            if len(self._buffer) > LONGEST_HEAD:
                self._refuse(400)
            return None
        head = bytes(self._buffer[: end + 2])
        found = LENGTH.search(head)
        length = int(found.group(1)) if found else 0
        if found is None and not head.startswith(b"GET "):
            self._refuse(411)
            return None
        if length > LONGEST_BODY:
            self._refuse(413)
            return None
        start = end + len(HEAD_END)
        if len(self._buffer) < start + length:
            if not self._needed and CONTINUE.search(head):
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._needed = start + length
            return None
        body = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        self._needed = 0
        return Request(head, body)

    def _refuse(self, status: int) -> None:
        self._send(Reply(response(status, b"{}"), closes=True))

    def _reply(self, head: bytes, body: bytes) -> Reply:
        method, path = head.split(b" ", 2)[:2]
        if method == b"POST" and (dialect := DIALECTS.get(path)):
            return self._teacher.reply(dialect, body)
        if method == b"GET" and path == b"/stats":
            return Reply(response(200, orjson.dumps(self._teacher.stats())))
        if method == b"GET" and path == b"/log":
            self._teacher.flush()
            return Reply(response(200, b"{}"))
        return Reply(response(404, b'{"error": {"message": "no such path"}}'))

    def _send_late(self, reply: Reply) -> None:
        self._waits = False
        self._send_now(reply)
        self._serve()

    def _send_now(self, reply: Reply) -> None:
        self._teacher.in_flight -= 1
        if not self._closing:
            self._send(reply)

    def _send(self, reply: Reply) -> None:
        if reply.data:
            self._transport.write(reply.data)
        if reply.closes:
            self._closing = True
            if reply.data:
                self._transport.close()
            else:
                self._reset()

    def _reset(self) -> None:
        connection: Any = self._transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; the first line on standard output is the address, as JSON."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    teacher = Teacher(settings)
    try:
        server = await loop.create_server(
            lambda: Connection(teacher, loop), "127.0.0.1", settings.port, backlog=BACKLOG
        )
        host, port = server.sockets[0].getsockname()
        print(orjson.dumps({"url": f"http://{host}:{port}/v1"}).decode(), flush=True)
        await ended.wait()
        server.close()
    finally:
        teacher.close()
