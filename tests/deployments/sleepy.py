"""A flow of tests: says where it runs, and what becomes of it."""

import json
import os
import time
from pathlib import Path

from prefect import flow


@flow(name="sleepy")
def sleepy(path: str, seconds: float = 0) -> None:
    """Writes what it sees into a file, sleeps, and says how that ended."""

    def say(**what: object) -> None:
        with Path(path).open("a") as file:
            file.write(json.dumps(what) + "\n")

    say(pid=os.getpid(), cwd=str(Path.cwd()), variables=dict(os.environ))
    try:
        time.sleep(seconds)
        say(ended="slept")
    except BaseException as end:
        say(ended=type(end).__name__)
        time.sleep(1)
        say(ended="saved")
        raise
