"""`python -m deployments.docker.worker COMMAND…`: a worker whose runs may save when its container is stopped.

A container's SIGTERM reaches its first process only, and a worker that is told to end may kill its runs at once. So this
process is the first: told to end, it ends the runs before the worker, as `make down` does.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

from deployments.box.leftovers import end_runs
from potstill.keeper import MARK, start_keeper

RUN_SECONDS = 40.0
"""How long runs may take to save."""
WORKER_SECONDS = 10.0
"""How long the worker may take after them; both fit into `stop_grace_period` of deployments/compose.yaml."""
TICK_SECONDS = 0.2


def keep(command: Sequence[str], run_seconds: float = RUN_SECONDS) -> int:
    """Be there as long as the worker is: 0 where it was told to end, else the worker's own exit status."""
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    keeper = start_keeper()
    worker = subprocess.Popen(command, start_new_session=True)
    while worker.poll() is None and not told.wait(TICK_SECONDS):
        pass
    worker.send_signal(signal.SIGSTOP)
    end_runs(os.environ[MARK], run_seconds)
    worker.terminate()
    worker.send_signal(signal.SIGCONT)  # only now: it does nothing more before it ends
    with suppress(subprocess.TimeoutExpired):
        worker.wait(WORKER_SECONDS)
    worker.kill()
    status = worker.wait()
    keeper.stop()
    return 0 if told.is_set() else status


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
