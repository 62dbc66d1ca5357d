"""Prefect's worker, which here hears of cancellations after any outage: `python -m deployments.worker --pool cpu …`.

The arguments are those of `prefect worker start`. A worker learns by WebSocket that a run of its is cancelled, and where that
breaks it looks every 10 s instead. Prefect 3.8.8 gives that up for good after three looks that fail: once the server had been
away for some 40 s, a run that was cancelled later went on, and stayed Cancelling.
"""

import runpy
import sys
from functools import partial

from prefect._internal import observers
from prefect.utilities.services import critical_service_loop


def look_on_after_outages() -> None:
    """Each three looks that fail double the pause; the first that succeeds brings the 10 s back."""
    observers.critical_service_loop = partial(critical_service_loop, backoff=sys.maxsize)  # pyright: ignore[reportPrivateImportUsage] - replaced where it is used


if __name__ == "__main__":
    look_on_after_outages()
    sys.argv = ["prefect", "worker", "start", *sys.argv[1:]]
    runpy.run_module("prefect", run_name="__main__")
