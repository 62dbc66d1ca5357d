"""The Prefect server of a run for which none is named."""

import os
import signal
import subprocess
import sys
import threading
import time

import httpx
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL

from potstill.errors import PotstillError
from potstill.exits import HOW_TO_GO_ON, INTERRUPTED
from potstill.subprocesses import GRACE_SECONDS

START_SECONDS = 120
"""On a busy machine it takes longer than the 20 s that Prefect allows by default."""


def start_server() -> None:
    """Start Prefect's temporary server, unless `PREFECT_API_URL` names another.

    Errors: `PotstillError` where that one does not answer.

    Ctrl-C goes to every process of a terminal's group. The server must outlive it, so that the run can still say how it
    ended: it inherits a mask that keeps the signal from it.
    """
    if url := PREFECT_API_URL.value():
        try:
            httpx.get(f"{url}/health", timeout=START_SECONDS)
        except httpx.HTTPError as error:
            raise PotstillError(f"PREFECT_API_URL {url} does not answer ({error}): start it, or unset it") from None
        return
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")  # nothing is sent to anybody from here
    server = SubprocessASGIServer()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        server.start(START_SECONDS)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    assert server.server_process is not None
    threading.Thread(target=_end_without, args=(server.server_process,), daemon=True).start()


def _end_without(server: "subprocess.Popen[bytes]") -> None:
    """A run that has lost its server, as by a SIGTERM to the whole group, would try to reach it for minutes."""
    server.wait()
    time.sleep(GRACE_SECONDS)
    print(f"Prefect's temporary server ended before the run. {HOW_TO_GO_ON}", file=sys.stderr, flush=True)  # noqa: T201 - a command's output
    os._exit(INTERRUPTED)
