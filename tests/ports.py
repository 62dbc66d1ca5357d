"""Ports of 127.0.0.1 that nobody listens on."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import cycle, islice
from random import SystemRandom

FIRST, END = 10_240, 32_768
"""Below those that the system gives to whoever names none: it would give one away before it is bound again."""
TRIES = 1000


def free_port() -> int:
    [port] = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """So many different ones, of which none is soon given again, in this process or in another worker of pytest's."""
    found: list[int] = []
    with ExitStack() as stack:
        for port in islice(_candidates, TRIES):
            if len(found) == count:
                break
            with suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
    assert len(found) == count, f"{len(found)} of {count} ports are free"
    return found


def _of_this_worker() -> Iterator[int]:
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = range(FIRST + number, END, workers)
    start = SystemRandom().randrange(len(ports))
    return cycle([*ports[start:], *ports[:start]])


_candidates = _of_this_worker()
