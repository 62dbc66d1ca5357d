"""The ports of this machine's servers: where they are, and whether another program has taken one."""

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import yaml

from potstill.doctor.finding import Finding, ok, warn
from potstill.prefect_api import URL_VARIABLE

HOST = "127.0.0.1"
PROBE_SECONDS = 2.0


class Port(NamedTuple):
    """A port that one of our servers takes."""

    name: str
    host: str
    port: int
    path: str = "/health"
    says: str = "application/json"
    """What it answers there, which tells it from most other programs."""


SERVERS = {
    "server": Port("Prefect", HOST, 4200, "/api/health"),
    "gateway": Port("gateway", HOST, 8000),
    "webhook": Port("webhook", HOST, 8380),
    "reports": Port("reports", HOST, 8390, says="text/plain"),
}
"""By the section of box.yaml, which leaves them these ports where it says nothing else."""


def expected_ports(home: Path, config: Path) -> list[Port]:
    """Where Prefect, the gateway, the webhook and the reports listen.

    That is what the box below this home has written, while it is up; else what its configuration says, where that can be read:
    `make up` tells its faults. A server of Prefect that the environment names on this machine is looked for there.
    """
    said = _of_box(home) or _of_config(config)
    found = {name: port._replace(port=said[name]) for name, port in SERVERS.items() if name in said}
    url = urlsplit(os.environ.get(URL_VARIABLE, ""))
    if url.hostname in {"127.0.0.1", "localhost", "::1"}:
        found["server"] = SERVERS["server"]._replace(host=url.hostname, port=url.port or 4200)
    return list(found.values())


def check_port(port: Port) -> Finding:
    """A port is free, or held by the server that it is for."""
    name, where = f"port {port.port}", f"{port.host}:{port.port}"
    with socket.socket(socket.AF_INET6 if ":" in port.host else socket.AF_INET) as probe:
        probe.settimeout(PROBE_SECONDS)
        if probe.connect_ex((port.host, port.port)):
            return ok(name, f"free for {port.name}")
    try:
        reply = httpx.get(f"http://{where}{port.path}", timeout=PROBE_SECONDS, trust_env=False)
        is_ours = reply.status_code in {200, 401, 503} and port.says in reply.headers.get("content-type", "")
    except httpx.HTTPError:
        is_ours = False
    if is_ours:
        return ok(name, f"{port.name} answers")
    return warn(name, f"another program listens where {port.name} would", f"ss -ltnp 'sport = :{port.port}' names it")


def _of_box(home: Path) -> dict[str, int]:
    """By section; nothing where there is no box, or one of a version that writes something else."""
    try:
        ports: Any = json.loads((home / "box" / "state.json").read_bytes())["ports"]
        return {name: int(ports[name]) for name in SERVERS if name in ports}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _of_config(path: Path) -> dict[str, int]:
    """By section, but for those that are null; the usual ones where the file cannot be read."""
    sections: Any = None
    with suppress(OSError, ValueError, yaml.YAMLError):
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(sections, dict):
        sections = {}
    given = {name: sections.get(name, {}) for name in SERVERS}
    return {
        name: section["port"]
        if isinstance(section, dict) and isinstance(section.get("port"), int)
        else SERVERS[name].port
        for name, section in given.items()
        if section is not None
    }
