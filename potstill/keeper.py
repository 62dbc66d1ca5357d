"""Ends what a run leaves running, however the run ends.

Prefect's temporary server does not notice that the process which started it was killed. So a run puts a mark into its
environment, which all that it starts inherits, and starts a keeper in a session of its own. The keeper waits on the pipe
that closes with the run, and then ends whatever still bears the mark.
"""

import os
import sys
import time

import psutil

from potstill.subprocesses import Child

MARK = "POTSTILL_RUN_MARK"
LEAVE_SECONDS = 3.0
"""How long what ends by itself, such as a training child whose parent is gone, may take."""
GRACE_SECONDS = 5.0
"""How long the rest may take after SIGTERM before it is killed."""


def start_keeper() -> Child:
    """Mark this process and all that it will start, and have them looked after. Hold the result as long as you run."""
    os.environ[MARK] = f"{os.getpid()}-{time.time_ns()}"
    return Child([sys.executable, "-m", "potstill.keeper"])


def main() -> None:
    """In the keeper: wait for the run's end, then end what it left."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    mark = os.environ[MARK]
    _await_end(mark, LEAVE_SECONDS)
    for process in _marked(mark):
        process.terminate()
    _await_end(mark, GRACE_SECONDS)
    for process in _marked(mark):
        process.kill()


def _await_end(mark: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while _marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)


def _marked(mark: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and _mark_of(process) == mark]


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except psutil.Error:  # gone, a zombie, or another user's
        return None


if __name__ == "__main__":
    main()
