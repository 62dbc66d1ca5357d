"""Which process is at work: enough to tell later, on the same machine, whether it still lives."""

import os
import socket
from functools import cache
from pathlib import Path

from potstill.records import Row
from potstill.subprocesses import process_started_at


class Owner(Row):
    """One process on one machine, since one boot."""

    host: str
    boot_id: str
    pid: int
    started_at: float
    """Seconds since the epoch."""

    def is_on_this_machine(self) -> bool:
        """Whether this machine can tell if it lives."""
        return self.host == socket.gethostname()

    def is_dead(self) -> bool:
        """True only where this machine can tell: the process, or the boot that it ran in, is over."""
        if not self.is_on_this_machine():
            return False
        if self.boot_id != _boot_id():
            return True
        found = process_started_at(self.pid)
        return found is None or abs(found - self.started_at) > 1


@cache
def this_process() -> Owner:
    """The process that runs this code."""
    started = process_started_at(os.getpid())
    assert started is not None
    return Owner(host=socket.gethostname(), boot_id=_boot_id(), pid=os.getpid(), started_at=started)


@cache
def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""
