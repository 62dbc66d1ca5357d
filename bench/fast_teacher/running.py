"""A fake teacher in a process of its own, for as long as a block runs."""

import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import orjson
import psutil

from bench.fast_teacher.log import LoggedRequests, read_log

ROOT = Path(__file__).parents[2]
SECONDS_TO_END = 10


class RunningTeacher(NamedTuple):
    """Where it serves, and what it has served."""

    url: str
    """With the /v1 that OpenAI's clients take for their base URL; Anthropic's take it without."""
    log_path: Path
    pid: int

    def stats(self) -> dict[str, Any]:
        """The counts so far, as `Teacher.stats` gives them."""
        return orjson.loads(self._get("/stats"))

    def log(self) -> LoggedRequests:
        """All that it has served so far."""
        self._get("/log")
        return read_log(self.log_path)

    def cpu_seconds(self) -> float:
        times = psutil.Process(self.pid).cpu_times()
        return times.user + times.system

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + path, timeout=SECONDS_TO_END) as reply:
            return reply.read()


@contextmanager
def running(**flags: Any) -> Iterator[RunningTeacher]:
    """Start a teacher with these fields of `Settings`, and end it after the block; its log stays where `log` says.

    Errors: `RuntimeError` where it does not start or does not end well.
    """
    with TemporaryDirectory() as directory:
        log_path = Path(flags.pop("log", None) or Path(directory) / "teacher.log")
        given = [_flag(name, value) for name, value in flags.items()]
        command = [sys.executable, "-m", "bench.fast_teacher", *given, f"--log={log_path}"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            first = process.stdout.readline()
            if not first:
                raise RuntimeError(f"the fake teacher did not start: {' '.join(command)}")
            yield RunningTeacher(orjson.loads(first)["url"], log_path, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(SECONDS_TO_END)
            process.stdout.close()
    if code != 0:
        raise RuntimeError(f"the fake teacher ended with code {code}")


def _flag(name: str, value: object) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag}={value}"
