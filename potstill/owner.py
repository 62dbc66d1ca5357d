"""Which process is at work: enough to tell later, on the same machine, whether it still lives."""

import os
import socket
from functools import cache
from pathlib import Path

from potstill.records import Row
from potstill.subprocesses import process_started_at


class Owner(Row):
    """One process among those that can see each other: on one machine, since one boot, in one container."""

    host: str
    boot_id: str
    """The boot and the PID namespace; "" where the system names neither."""
    pid: int
    started_at: float
    """Seconds since the epoch."""

    def is_on_this_machine(self) -> bool:
        """Whether this process can tell if it lives. Names prove nothing: machines and containers share them."""
        return (self.host, self.boot_id) == (socket.gethostname(), _boot_id())

    def is_dead(self) -> bool:
        """True only where this process can tell."""
        if not self.is_on_this_machine():
            return False
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
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not boot.exists():
        return ""
    return f"{boot.read_text().strip()} {namespace.readlink() if namespace.is_symlink() else ''}"
