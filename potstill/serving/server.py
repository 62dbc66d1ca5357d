"""One way to run an app on a socket, for the gateway and for the backend child: ready means ready, and signals end it."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from potstill.errors import UsageError

GRACE_SECONDS = 10
"""How long answers in flight may take once the server is told to stop."""


class _Server(uvicorn.Server):
    """Says when it answers, and leaves signals to its caller: uvicorn would raise them again once it has shut down."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A socket on host and port (0: any free one) that does not listen yet. Errors: `UsageError` where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio turns Nagle off only for this proto
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except (OSError, OverflowError) as error:
        sock.close()
        said = error.strerror if isinstance(error, OSError) else "a port is 0 to 65535"
        raise UsageError(f"cannot serve on {host}:{port} ({said}): choose another --host or --port") from None
    return sock


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def stop_event() -> asyncio.Event:
    """Set by SIGTERM and SIGINT, from now on."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def run_app(
    app: ASGIApp,
    sock: socket.socket,
    stop: asyncio.Event,
    on_started: Callable[[], None],
    *,
    grace_seconds: int = GRACE_SECONDS,
    **settings: Any,
) -> None:
    """Serve until `stop` is set; `on_started` is called once the socket answers. `settings` are more of uvicorn's."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=grace_seconds, **settings
    )
    server = _Server(config, on_started)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        server.should_exit = True
        await serving
