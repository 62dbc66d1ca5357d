"""The machine that a benchmark ran on, and how much of it others used meanwhile."""

import os
import platform
import timeit
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "transformers", "trl", "peft", "httpx", "httpx-aiohttp", "aiohttp", "SQLAlchemy", "uvicorn")


def describe_machine() -> dict[str, Any]:
    """What figures depend on; nothing that names this machine or its owner."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "million_additions_ms": _million_additions_ms(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def _million_additions_ms() -> float:
    """How fast Python is here, at the best of five: two machines with one name may differ by a factor of four."""
    return round(1000 * min(timeit.repeat("for i in range(1_000_000): n += i", "n = 0", number=1, repeat=5)), 1)


def other_cpu_seconds() -> float:
    """CPU seconds that this machine has spent so far on other processes than this one and its children."""
    machine = psutil.cpu_times()
    busy = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0)
    this = psutil.Process()
    living = sum(sum(child.cpu_times()[:2]) for child in this.children(recursive=True))
    ours = sum(this.cpu_times()[:4])  # with the children that have ended
    return busy - ours - living
