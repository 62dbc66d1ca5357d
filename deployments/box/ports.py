"""Whether the ports are free, and who has those that are not."""

import socket

import psutil

from deployments.box.config import HOST, Box
from potstill.errors import UsageError


def is_free(port: int) -> bool:
    """Whether a server could listen on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def check_ports(box: Box, config: str) -> None:
    """Errors: `UsageError` that names each port that is taken, who has it, and the field to change."""
    taken = [
        f"port {port} is taken{_by_whom(port)}: free it, or choose another as {name}.port in {config}"
        for name, port in box.ports.items()
        if not is_free(port)
    ]
    if taken:
        raise UsageError("\n".join(taken))


def _by_whom(port: int) -> str:
    try:
        listening = [
            found.pid
            for found in psutil.net_connections("tcp")
            if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port
        ]
        pid = next((pid for pid in listening if pid), None)
        return f" by process {pid} ({psutil.Process(pid).name()})" if pid else ""
    except psutil.Error:
        return ""
