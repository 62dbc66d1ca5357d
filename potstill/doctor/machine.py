"""The machine: GPU and driver, processors, memory, disk, the clock's own setting."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from potstill.doctor.finding import Finding, fail, ok, warn
from potstill.doctor.software import torch_cuda

GIB = 2**30
LEAST_DISK, GOOD_DISK = 1 * GIB, 10 * GIB
"""A student with its checkpoints takes some GiB; a base of 8 billion parameters takes 16."""
GOOD_MEMORY = 4 * GIB
NVIDIA_SECONDS = 4.0


def check_gpu(program: str = "nvidia-smi", cuda: str | None = None) -> Iterator[Finding]:
    """The driver's own account of the cards, and whether the installed torch can use them."""
    if shutil.which(program) is None:
        yield warn("gpu", "no NVIDIA driver here", "students are trained on the CPU here, or by workers of pool gpu")
        return
    query = [program, "--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader,nounits"]
    ran = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SECONDS, check=False)
    lines = [[part.strip() for part in line.split(",")] for line in ran.stdout.splitlines() if line.count(",") == 3]
    if ran.returncode or not lines:
        said = " ".join((ran.stderr or ran.stdout).split())[:200] or f"exit code {ran.returncode}"
        yield fail("gpu", f"{program}: {said}", "restart the machine after a driver update, or mend the driver")
        return
    for name, driver, total, used in lines:
        yield ok("gpu", f"{name}, driver {driver}, {used} of {total} MiB in use")
    built = cuda or torch_cuda()
    header = subprocess.run([program], capture_output=True, text=True, timeout=NVIDIA_SECONDS, check=False).stdout
    match = re.search(r"CUDA (?:UMD )?Version: *(\d+)\.(\d+)", header)
    if built is None:
        yield warn("torch", "built for the CPU, beside a GPU", "install a build for CUDA")
    elif match and int(match[1]) < int(built.partition(".")[0]):
        said = f"built for CUDA {built}, the driver knows {match[1]}.{match[2]}"
        yield fail("torch", said, "update the driver, or install a build for its CUDA")
    else:
        yield ok("torch", f"built for CUDA {built}" + (f", the driver knows {match[1]}.{match[2]}" if match else ""))


def check_memory() -> Finding:
    """Processors and memory."""
    import psutil

    memory = psutil.virtual_memory()
    said = f"{_cores()} cores, {memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if memory.available < GOOD_MEMORY:
        return warn("memory", said, "a base of 135 million parameters needs 3 GiB to train; stop what else runs")
    return ok("memory", said)


def check_disk(place: Path, name: str = "disk") -> Finding:
    """Room where state lives."""
    free, total = _room(place)
    said = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free at {place}"
    if free < LEAST_DISK:
        return fail(name, said, "make room, or set POTSTILL_HOME to a larger disk")
    if free < GOOD_DISK:
        return warn(name, said, "make room: a base, checkpoints and releases take some GiB")
    return ok(name, said)


def check_timezone() -> Finding:
    """The zone in which a schedule without one of its own would run."""
    offset = time.strftime("%z")
    return ok(
        "timezone", f"{time.tzname[time.localtime().tm_isdst > 0]} (UTC{offset[:3]}:{offset[3:]}); months are UTC"
    )


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _room(place: Path) -> tuple[int, int]:
    """Bytes that an ordinary user may still write, and all; of the nearest directory that is there."""
    existing = next(parent for parent in (place, *place.parents) if parent.exists())
    found = os.statvfs(existing)
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
