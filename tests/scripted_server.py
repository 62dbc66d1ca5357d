"""What the fake teachers have in common: a real HTTP server in a thread, whose responses may break off anywhere."""

import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")
POLL_SECONDS = 0.002
"""How long a server takes to notice that it is to stop."""


class ScriptedServer:
    """Serves at `url` as long as its context lasts; state is the subclass's."""

    handler: type["ScriptedHandler[Any]"]

    def __init__(self) -> None:
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), self.handler)
        self._server.teacher = self
        self.origin = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{self.origin}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL_SECONDS,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def hang(self, seconds: float | None = None) -> None:
        """Until the server is closed, or for so long."""
        self._closing.wait(seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    teacher: ScriptedServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is no news."""


class ScriptedHandler(BaseHTTPRequestHandler, Generic[T]):
    """One connection to a server whose state is a `T`."""

    protocol_version = "HTTP/1.1"

    @property
    def teacher(self) -> T:
        return self.server.teacher  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self.serve()

    def do_POST(self) -> None:
        self.serve()

    def serve(self) -> None:
        raise NotImplementedError

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def read_headers(self) -> dict[str, str]:
        """By their names in lower case."""
        return {name.lower(): value for name, value in self.headers.items()}

    def head(self, status: int, length: int, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
        lines = [f"HTTP/1.1 {status} scripted", "content-type: application/json", f"content-length: {length}"]
        lines += [f"{name}: {value}" for name, value in headers]
        return "\r\n".join([*lines, "", ""]).encode()

    def send(self, status: int, body: bytes, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.wfile.write(self.head(status, len(body), headers) + body)

    def drop(self, *, is_reset: bool = True) -> None:
        """End the connection here."""
        self.wfile.flush()
        if is_reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.wfile.close()
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
        pass


def wait_until(is_so: Callable[[], bool], said: Callable[[], str], seconds: float) -> None:
    """Fails, with what is `said` then, where it is not so in time."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, said()
        time.sleep(0.005)
