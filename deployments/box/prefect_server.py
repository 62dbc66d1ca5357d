"""Prefect's server as the box starts it, again and again: what its absence delayed is not held against living runs.

`python -m deployments.box.prefect_server ARGUMENTS`, those of `prefect server start`; it becomes the server, under its own pid.
"""

import os
import sys

from deployments.outage import give_time

if __name__ == "__main__":
    give_time()
    os.execv(sys.executable, [sys.executable, "-m", "prefect", "server", "start", *sys.argv[1:]])  # noqa: S606 - no shell
