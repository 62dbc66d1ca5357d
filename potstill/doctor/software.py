"""Python, and the packages that are installed, against what Potstill needs and what it was tried with."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import potstill
from potstill.doctor.finding import Finding, fail, ok, warn

CONSTRAINTS = Path(potstill.__file__).parents[1] / "constraints.txt"
"""In a checkout only: a wheel does not hold it."""
SHOWN = 6
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;#]+)")


def check_python() -> Finding:
    """The interpreter, against the versions that the package is for."""
    version = ".".join(map(str, sys.version_info[:3]))
    wanted = _requires_python()
    if wanted and not _admits(wanted, version):
        return fail("python", f"{version}, but potstill is for {wanted}", "make an environment with such a Python")
    return ok("python", f"{version} at {sys.executable}")


def check_packages(constraints: Path = CONSTRAINTS) -> Iterator[Finding]:
    """What potstill requires, then what it was tried with."""
    wrong = list(_unmet())
    if wrong:
        yield fail("requirements", _listed(wrong), "install them: pip install -c constraints.txt -e .")
    else:
        yield ok("requirements", "all installed, in versions that potstill admits")
    if not constraints.is_file():
        remedy = "compare with the constraints.txt of a checkout: it is not in a wheel"
        yield warn("constraints", "no constraints.txt here", remedy)
        return
    found = map(_PINNED.match, constraints.read_text().splitlines())
    pinned: dict[str, str] = {match[1]: match[2] for match in found if match}
    installed = {name: version for name in pinned if (version := _version(name)) is not None}
    other = [
        f"{name} {found} (tried {pinned[name]})" for name, found in installed.items() if not _same(found, pinned[name])
    ]
    if other:
        yield warn("constraints", _listed(other), f"pip install -c {constraints.name} -e .")
    else:
        yield ok("constraints", f"{len(installed)} packages as in {constraints.name}")


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch was built for, read without importing it; None for a CPU build or no torch."""
    found = importlib.util.find_spec("torch")
    path = Path(found.origin).parent / "version.py" if found and found.origin else None
    text = path.read_text() if path and path.is_file() else ""
    match = re.search(r"^cuda\b[^=]*= *'([\d.]+)'", text, re.MULTILINE)
    return match[1] if match else None


def _requires_python() -> str | None:
    try:
        return metadata.metadata("potstill")["Requires-Python"]
    except metadata.PackageNotFoundError:
        return None


def _admits(specifiers: str, version: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifiers).contains(version, prereleases=True)


def _unmet() -> Iterator[str]:
    """The package's requirements that are not met, those of its extras left out."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("potstill") or []
    except metadata.PackageNotFoundError:
        yield "potstill is not installed: its requirements are not known"
        return
    for requirement in map(Requirement, lines):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _version(requirement.name)
        if found is None:
            yield f"{requirement.name} is missing"
        elif not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name} {found} (needs {requirement.specifier})"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _same(found: str, pinned: str) -> bool:
    """A local part, such as +cpu, says how it was built."""
    return found.partition("+")[0] == pinned.partition("+")[0]


def _listed(parts: list[str]) -> str:
    more = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    return ", ".join(parts[:SHOWN]) + more
