"""A run folder: where a child process works, what it leaves for the next attempt, and how it says how it ended.

The folder outlives the process. The child holds its lock; a new child waits for it, then ends the recorded orphan.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel

from potstill.artifacts import write_atomically
from potstill.errors import DataError, PotstillError, SubprocessError
from potstill.owner import Owner, this_process
from potstill.records import Row
from potstill.subprocesses import Child, end_process, exit_with_parent

ORPHAN_SECONDS = 10.0
"""How long an orphan may take to notice that its parent is gone, before it is ended."""


class ChildStatus(Row):
    """How a child ended. Written atomically, since launchers swallow exit codes."""

    state: Literal["done", "failed"] = "done"
    error: str | None = None
    is_fault_of_data: bool = False
    """True where the same spec would fail again."""


S = TypeVar("S", bound=ChildStatus)


class RunFolder:
    """The files of one run, by their names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = path / "spec.json"
        self.progress = path / "progress.jsonl"
        self.status = path / "status.json"
        self.log = path / "child.log"
        self._owner = path / "owner.json"
        self._lock = FileLock(path / "run.lock")

    def launch(
        self, arguments: Sequence[str], spec: BaseModel, status: type[S], on_tick: Callable[[], None] | None = None
    ) -> S:
        """In the parent: run `python *arguments SPEC` to its end and return how it says it ended.

        Errors: `DataError` or `SubprocessError`, with the reason that the child gave, or its log.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.spec, spec.model_dump_json(indent=2))
        self.status.unlink(missing_ok=True)
        child = Child([sys.executable, *arguments, str(self.spec)], log_path=self.log)
        exit_status = child.wait(on_tick)
        if not self.status.exists():
            raise SubprocessError(
                f"{arguments[-1]} ended with status {exit_status} and said nothing: {child.log_tail(1)} (log: {self.log})"
            )
        ended = status.model_validate_json(self.status.read_bytes())
        if ended.state == "failed":
            cause = DataError if ended.is_fault_of_data else SubprocessError
            raise cause(f"{arguments[-1]} failed: {ended.error} (log: {self.log})")
        return ended

    def work(self, do: Callable[[], ChildStatus]) -> NoReturn:
        """In the child: do the work under the lock, leave the status, and exit; die with the parent meanwhile."""
        exit_with_parent()
        self._claim()
        write_atomically(self._owner, this_process().model_dump_json())
        try:
            status = do()
        except Exception as error:  # noqa: BLE001 - however it ends, the status says so; the traceback is in the log
            traceback.print_exc()
            known = str(error) if isinstance(error, PotstillError) else f"{type(error).__name__}: {error}"
            status = ChildStatus(state="failed", error=known[:500], is_fault_of_data=isinstance(error, DataError))
        write_atomically(self.status, status.model_dump_json(indent=2))
        sys.stdout.flush()
        os._exit(0 if status.state == "done" else 1)  # no thread of a library keeps a finished child alive

    def _claim(self) -> None:
        """Take the lock. Whoever holds it is an orphan: our own parent holds the lock of the stage."""
        try:
            self._lock.acquire(timeout=ORPHAN_SECONDS)
        except Timeout:
            owner = Owner.model_validate_json(self._owner.read_bytes())
            if owner.is_alive():
                print(f"ending orphan {owner.pid}, which holds {self.path}", flush=True)  # noqa: T201 - the child's log
                end_process(owner.pid, owner.started_at)
            self._lock.acquire(timeout=ORPHAN_SECONDS)
