"""A process that forks at each command, does a piece of work there, and kills it -9 at a given step of what goes to S3.

Each change of the bucket is two steps: before it, and after it, when the server has it and nobody here knows. `python -m
tests.store.killing` reads a command a line and answers how the fork ended: 0, or -9.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.artifacts import StageKey, store_at
from potstill.object_store import ObjectStore

KEY = StageKey("stage", 1, "a" * 64)
CHANGES = ("write", "replace", "upload")


class Killer:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, work: str, home: Path, store: str, step: int) -> int:
        """Do the work in a new process that is killed at a step; 0 where it had fewer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        command = {"work": work, "home": str(home), "store": store, "step": step}
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def killer() -> Iterator[Killer]:
    command = [sys.executable, "-m", "tests.store.killing"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Killer(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)


def produce(home: Path) -> Any:
    """Two files, and a line of `calls` beside the store each time that it is asked for."""

    def write(directory: Path) -> int:
        with (home.parent / "calls").open("a") as calls:
            calls.write("called\n")
        (directory / "inner").mkdir()
        (directory / "inner" / "rows.txt").write_text("rows")
        (directory / "summary.json").write_text("{}")
        return 3

    return write


def build(home: Path) -> None:
    store_at(home).build(KEY, "Rows", produce(home))


def release(home: Path) -> None:
    from tests.test_release import release as publish

    publish(home, 2)


def rollback(home: Path) -> None:
    from potstill.release import rollback as roll

    roll(home, "demo")


def main() -> None:
    import s3fs  # noqa: F401 - once, before the forks

    import tests.test_release  # noqa: F401

    for line in sys.stdin:
        command = json.loads(line)
        if (pid := os.fork()) == 0:
            try:
                os.environ["POTSTILL_STORE"] = command["store"]
                _die_at(command["step"])
                {"build": build, "release": release, "rollback": rollback}[command["work"]](Path(command["home"]))
            except BaseException:  # noqa: BLE001 - a fork must never go on as a second reader
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _die_at(step: int) -> None:
    taken = 0

    def count() -> None:
        nonlocal taken
        taken += 1
        if taken == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(change: Any) -> Any:
        def call(*arguments: Any) -> Any:
            count()
            done = change(*arguments)
            count()
            return done

        return call

    for name in CHANGES:
        setattr(ObjectStore, name, dying(getattr(ObjectStore, name)))


if __name__ == "__main__":
    main()
