"""Connections that no sender can hold for nothing: uvicorn's own wait for a request for as long as there are files to open.

A first request has `HEAD_SECONDS` for its headers. Of more than `MOST` connections the one that has waited longest for the rest
of its request is closed, so that there is always room for another.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""The headers of the next requests have uvicorn's `timeout_keep_alive`."""
MOST = 500
"""A process may open 1,024 files as a rule; each connection may buffer 0.3 MiB before its body counts."""


class Connection(H11Protocol):
    """Of h11, which bounds the headers, as its faster rival does not."""

    waits_since: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - as uvicorn's
        super().connection_made(transport)
        self.waits_since = self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)
        if len(self.connections) > MOST:
            waiting = [one for one in self.connections if isinstance(one, Connection) and one.waits]
            min(waiting, key=lambda one: one.waits_since).transport.abort()

    @property
    def waits(self) -> bool:
        """Whether it is the sender's turn."""
        if self.transport.is_closing():
            return False
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def data_received(self, data: bytes) -> None:
        """Without the first line of uvicorn's: a whole head ends the wait for it, and not its first byte."""
        self.conn.receive_data(data)
        self.handle_events()

    def on_response_complete(self) -> None:
        self.waits_since = self.loop.time()
        super().on_response_complete()
