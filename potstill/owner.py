"""Which process is at work: enough to tell later, on the same machine, whether it still lives."""

import os
import socket
from functools import cache
from pathlib import Path

from potstill.records import Row
from potstill.subprocesses import BOOT_ID, is_running, process_started_at


class Owner(Row):
    """One process among those that can see each other: on one machine, since one boot, in one container."""

    host: str
    boot_id: str
    """The boot and the namespaces of PIDs and of time, in which start times count; "" where the system names no boot."""
    pid: int
    started_at: float
    """As `process_started_at` has it."""

    def is_on_this_machine(self) -> bool:
        """Whether this process can tell if it lives. Names prove nothing: machines and containers share them."""
        return (self.host, self.boot_id) == (socket.gethostname(), _boot_id())

    def is_dead(self) -> bool:
        """True only where this process can tell."""
        return self.is_on_this_machine() and not is_running(self.pid, self.started_at)

    def is_alive(self) -> bool:
        """True only where this process can tell."""
        return self.is_on_this_machine() and is_running(self.pid, self.started_at)


@cache
def this_process() -> Owner:
    """The process that runs this code."""
    started = process_started_at(os.getpid())
    assert started is not None
    return Owner(host=socket.gethostname(), boot_id=_boot_id(), pid=os.getpid(), started_at=started)


@cache
def _boot_id() -> str:
    """Owners of earlier versions have no third part: they count from the epoch, and are of another place to this one."""
    if not BOOT_ID.exists():
        return ""
    namespaces = (Path("/proc/self/ns") / name for name in ("pid", "time"))
    named = (str(namespace.readlink()) if namespace.is_symlink() else "-" for namespace in namespaces)
    return " ".join([BOOT_ID.read_text().strip(), *named])
