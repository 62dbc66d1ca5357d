"""Children that hold the heavy work: each in its own process group, logging to a file, and never outliving its parent.

The parent holds the write end of the child's standard input. However the parent ends, the kernel closes that pipe, and
the child, which waits on it in a thread, ends too.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from potstill.errors import SubprocessError
from potstill.llm.keys import without_keys

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
GRACE_SECONDS = 15.0
"""How long a child may take after SIGTERM before its group is killed."""
PARENT_GONE = 75
"""Exit status of a child whose parent died (EX_TEMPFAIL: the same run may be started again)."""

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads halve the speed of a shared machine
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONSAFEPATH": "1",  # no module is taken from the directory in which the user stands
}


class Child:
    """A running child process and its group. It inherits the environment, but no teacher's key."""

    def __init__(
        self, arguments: Sequence[str], *, log_path: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self.arguments = list(arguments)
        self.log_path = log_path
        self._log: IO[bytes] | int = subprocess.DEVNULL
        if log_path is not None:
            log_path.parent.mkdir(parents=True, exist_ok=True)
            self._log = log_path.open("ab")
        self._process = subprocess.Popen(
            self.arguments,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**without_keys(os.environ), **ENVIRONMENT, **(env or {})},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.poll()

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """SIGTERM to the group, then SIGKILL to what is left of it after the grace.

        A launcher goes at once; what it started may use the grace to save.
        """
        self._signal_group(signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while self._group_runs() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._signal_group(signal.SIGKILL)
        self._process.wait()
        self._close()

    def wait(self, on_tick: Callable[[], None] | None = None, tick_seconds: float = 0.25) -> int:
        """Wait for the end and return the exit status; `on_tick` is called while waiting and once after the end."""
        try:
            while self.poll() is None:
                if on_tick is not None:
                    on_tick()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(tick_seconds)
        except BaseException:
            self.stop()
            raise
        if on_tick is not None:
            on_tick()
        self._close()
        assert self._process.returncode is not None
        return self._process.returncode

    def log_tail(self, lines: int = 12) -> str:
        """The last lines of its log."""
        if self.log_path is None or not self.log_path.exists():
            return ""
        with self.log_path.open(encoding="utf-8", errors="replace") as file:
            return "".join(deque(file, maxlen=lines)).strip()

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _group_runs(self) -> bool:
        import psutil

        def is_ours(process: psutil.Process) -> bool:
            try:
                return os.getpgid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE
            except (psutil.Error, ProcessLookupError):
                return False

        self._process.poll()
        return any(is_ours(process) for process in psutil.process_iter())

    def _close(self) -> None:
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        if not isinstance(self._log, int):
            self._log.close()


def run_child(
    arguments: Sequence[str], *, log_path: Path | None = None, on_tick: Callable[[], None] | None = None
) -> None:
    """Run a child to its end. Errors: `SubprocessError` with the last line of its log where it fails."""
    child = Child(arguments, log_path=log_path)
    status = child.wait(on_tick)
    if status != 0:
        last = child.log_tail(1)
        where = f" (log: {log_path})" if log_path else ""
        raise SubprocessError(f"{' '.join(arguments[1:4])} ended with status {status}{where}: {last or 'no output'}")


def exit_with_parent() -> None:
    """In a child: end this process, whatever it is doing, as soon as the parent is gone."""

    def watch() -> None:
        while os.read(descriptor, 4096):
            pass
        os._exit(PARENT_GONE)

    descriptor = sys.stdin.fileno()
    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def process_started_at(pid: int) -> float | None:
    """When a process began; None where it does not run. With the pid it names one process of this boot.

    In seconds since the boot where the system names its boots, as Linux does: those that count from the epoch change when
    the clock is set. A zombie does not run: in a container whose first process reaps nobody it would stay for ever.
    """
    if BOOT_ID.exists():
        try:
            state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if state in {b"Z", b"X"} else int(fields[18]) / os.sysconf("SC_CLK_TCK")
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def is_running(pid: int, started_at: float) -> bool:
    """Whether the process runs that has this pid and start time; where another has the pid by now, it does not."""
    found = process_started_at(pid)
    return found is not None and abs(found - started_at) <= 1


def end_process(pid: int, started_at: float, grace_seconds: float = GRACE_SECONDS) -> bool:
    """End the process of this boot that has this pid and start time, with its group; False where it is gone already."""
    if not is_running(pid, started_at):
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(os.getpgid(pid), number)
        deadline = time.monotonic() + grace_seconds
        while time.monotonic() < deadline:
            if process_started_at(pid) is None:
                return True
            time.sleep(0.1)
    return True
