"""Releases: versions are immutable, aliases move.

$POTSTILL_HOME/releases/<recipe>/
  versions/<sha12>/       adapter/, golden.jsonl, decision.json, and version.json written last; never changed after
  aliases.json            which version is champion, candidate, previous; replaced atomically
  promotions.jsonl        every move of the champion, appended before the alias moves

All that writes holds `releases/<recipe>/.lock`. The log comes before the alias: a crash between the two leaves the old
champion serving and a last line that did not come true. The next line then starts from the champion that really served,
and the same `publish` again finishes the move without a second line.
"""

import json
import os
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson
from filelock import FileLock
from pydantic import ValidationError

from potstill.artifacts import load_artifact, write_atomically
from potstill.errors import ArtifactDamagedError, ReleaseError
from potstill.fingerprint import file_sha256, fingerprint
from potstill.recipe import Student
from potstill.records import Message, Row, write_jsonl
from potstill.student.base import PACKAGE_PREFIX, Base

if TYPE_CHECKING:
    from potstill.gate import GateDecision

ADAPTER = "adapter"
GOLDEN_PROMPTS = 20
VERSION_FILE = "version.json"
MODEL_NAME = re.compile(r"(?P<recipe>[a-z0-9][a-z0-9-]{0,62})(@(?P<version>[0-9a-f]{12}))?")
CODE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py"})
"""Files that run code when they are loaded."""

Alias = Literal["champion", "candidate", "previous"]


class Version(Row):
    """A released student. What answers is fixed by it: the adapter, the base under it, and how long an answer may be."""

    recipe: str
    version: str
    """The first 12 hex digits of `digest`."""
    digest: str
    """sha256 over the adapter's file names and sha256s, the base's identity and `max_tokens`."""
    base_location: str
    """What `potstill.student.base.resolve_base` finds the base by."""
    base_revision: str | None
    base_identity: str
    adapter_digest: str
    """Digest of the StudentAdapter artefact."""
    decision_digest: str
    """Fingerprint of the gate decision that let this version in first."""
    max_tokens: int
    """Longest answer where a request names no limit: the one it was evaluated with."""
    created_at: datetime
    files: dict[str, str]
    """sha256 of every other file, by its path in the version's directory."""

    @property
    def name(self) -> str:
        """What clients call it: `<recipe>@<sha12>`."""
        return f"{self.recipe}@{self.version}"


class Aliases(Row):
    champion: str | None = None
    """The version that answers to the recipe's name."""
    candidate: str | None = None
    previous: str | None = None
    """The version that served before; `rollback` swaps it with the champion."""


class Golden(Row):
    """A prompt of the test split and the evaluated student's answer to it."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    expected: str


class Promotion(Row):
    """A line of promotions.jsonl. It came true unless a later line, or the champion, starts from another version."""

    what: Literal["release", "rollback"]
    from_version: str | None
    to_version: str
    at: datetime
    decision_digest: str | None
    """The gate decision behind a release; None for a rollback."""


class Release(NamedTuple):
    """What `publish` did."""

    version: str
    previous: str | None
    """The version that a rollback brings back."""
    alias: Alias | None
    """The alias that names this version now; "previous" or None where it was rolled back on the same decision."""
    digest: str


def publish(
    home: Path,
    recipe: str,
    adapter: Path,
    *,
    student: Student,
    base: Base,
    decision: "GateDecision",
    golden: Sequence[Golden],
    max_tokens: int,
) -> Release:
    """Make a student that passed its gate a version, and the champion of its recipe.

    The same student again is the same version. A decision moves the champion once: publishing again on it changes
    nothing, so that a nightly re-run does not bring back what was rolled back; a new decision does.

    Args:
        adapter: the directory of a StudentAdapter artefact, inside a store or not.
        student: where the recipe finds the base.
        base: what was found there.
        golden: test prompts with the evaluated student's answers; the first 20 are kept.

    Errors: `ReleaseError` where the decision did not pass, the adapter could run code, or the name is no recipe's;
    `ArtifactMissingError`, `ArtifactDamagedError` where the adapter, or a version of the same digest, is not whole.
    """
    if decision.verdict != "passed":
        raise ReleaseError(f"release {recipe}: the gate's verdict is {decision.verdict}, only a passed one is released")
    directory = _recipe_directory(home, recipe)
    artefact = load_artifact(adapter, "StudentAdapter")
    files = _adapter_files(adapter / ADAPTER)
    digest = fingerprint({"files": files, "base": base.identity, "max_tokens": max_tokens})
    version = Version(
        recipe=recipe,
        version=digest[:12],
        digest=digest,
        base_location=student.base if student.base.startswith(PACKAGE_PREFIX) else base.location,
        base_revision=base.revision,
        base_identity=base.identity,
        adapter_digest=artefact.digest,
        decision_digest=fingerprint(decision),
        max_tokens=max_tokens,
        created_at=datetime.now(UTC),
        files=files,
    )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(directory / ".lock"):
        final = directory / "versions" / version.version
        if final.exists():
            verify(final)
        else:
            _write_version(final, version, adapter / ADAPTER, decision.model_dump_json(indent=2), golden)
        _let_in(directory, version)
        now = aliases(home, recipe)
    return Release(version.version, now.previous, _alias_of(now, version.version), digest)


def rollback(home: Path, recipe: str) -> Aliases:
    """Swap champion and previous; a second call swaps them back. The gateway follows with the next request.

    Errors: `ReleaseError` where no version served before; `ArtifactDamagedError` where that version cannot be read.
    """
    directory = _recipe_directory(home, recipe)
    if not directory.is_dir():
        raise ReleaseError(f"rollback {recipe}: {_what_there_is(home)}")
    with FileLock(directory / ".lock"):
        now = aliases(home, recipe)
        if now.champion is None or now.previous is None:
            raise ReleaseError(f"rollback {recipe}: no earlier version to go back to; champion is {now.champion}")
        _read_version(directory / "versions" / now.previous)
        moved = now.model_copy(update={"champion": now.previous, "previous": now.champion})
        _move(directory, now, moved, "rollback", None)
    return moved


def aliases(home: Path, recipe: str) -> Aliases:
    """Where the aliases of a recipe point now; all None where nothing was released."""
    path = _recipe_directory(home, recipe) / "aliases.json"
    try:
        return _parse_aliases(path.read_bytes())
    except FileNotFoundError:
        return Aliases()
    except ValidationError:
        raise ArtifactDamagedError(f"{path} cannot be read: mend it by hand, promotions.jsonl tells the moves") from None


def releases(home: Path, recipe: str) -> list[Version]:
    """Every version of a recipe, oldest first."""
    found = (_recipe_directory(home, recipe) / "versions").glob(f"*/{VERSION_FILE}")
    return sorted((_read_version(path.parent) for path in found), key=lambda version: version.created_at)


def all_recipes(home: Path) -> list[str]:
    """The names of the recipes that have a version."""
    return sorted({path.parents[2].name for path in (home / "releases").glob(f"*/versions/*/{VERSION_FILE}")})


def resolve(home: Path, model: str) -> Version:
    """The version that a model's name means now: `<recipe>` is its champion, `<recipe>@<sha12>` that version.

    Errors: `ReleaseError` that lists what there is; `ArtifactDamagedError` where the version cannot be read.
    """
    match = MODEL_NAME.fullmatch(model)
    if match is None:
        raise ReleaseError(f"model {model!r}: a name is <recipe> or <recipe>@<12 hex digits>; {_what_there_is(home)}")
    recipe = match["recipe"]
    version = match["version"] or aliases(home, recipe).champion
    directory = _recipe_directory(home, recipe) / "versions" / (version or "")
    if version is None or not directory.is_dir():
        raise ReleaseError(f"model {model!r} is not released; {_what_there_is(home)}")
    return _read_version(directory)


def version_directory(home: Path, version: Version) -> Path:
    return _recipe_directory(home, version.recipe) / "versions" / version.version


def verify(directory: Path) -> Version:
    """Check every file of a version against its sha256, and that nothing was added.

    Errors: `ArtifactDamagedError` naming the files that are missing, changed or strange.
    """
    version = _read_version(directory)
    found = _digest_files(directory)
    found.pop(VERSION_FILE)
    wrong = sorted(name for name in found.keys() | version.files.keys() if found.get(name) != version.files.get(name))
    if wrong:
        raise ArtifactDamagedError(
            f"{directory}: {', '.join(wrong)} differ from {VERSION_FILE}: move the directory away and release again"
        )
    return version


def _recipe_directory(home: Path, recipe: str) -> Path:
    if MODEL_NAME.fullmatch(recipe) is None or "@" in recipe:
        raise ReleaseError(f"{recipe!r} is no recipe's name: lower-case letters, digits and hyphens")
    return home / "releases" / recipe


def _what_there_is(home: Path) -> str:
    names = [f"{name} ({', '.join(v.version for v in releases(home, name))})" for name in all_recipes(home)]
    return f"released: {'; '.join(names)}" if names else "nothing is released yet: run a recipe with `potstill run`"


def _adapter_files(directory: Path) -> dict[str, str]:
    """Digests by path below the version's directory, of an adapter that cannot run code."""
    if not (directory / "adapter_model.safetensors").is_file():
        raise ReleaseError(f"{directory}: no adapter_model.safetensors in it: only safetensors are released")
    for path in sorted(directory.rglob("*")):
        if path.suffix in CODE_SUFFIXES or path.is_symlink():
            raise ReleaseError(f"{path}: only safetensors, JSON and text are released: remove it from the adapter")
        if path.name.endswith("config.json") and json.loads(path.read_bytes()).get("auto_map"):
            raise ReleaseError(f"{path}: auto_map runs code out of the model's directory: remove it")
    return {f"{ADAPTER}/{name}": digest for name, digest in _digest_files(directory).items()}


def _write_version(final: Path, version: Version, adapter: Path, decision: str, golden: Sequence[Golden]) -> None:
    workplace = final.parents[1] / "tmp" / version.version
    shutil.rmtree(workplace, ignore_errors=True)
    workplace.mkdir(parents=True)
    shutil.copytree(adapter, workplace / ADAPTER, copy_function=shutil.copyfile)
    write_jsonl(workplace / "golden.jsonl", golden[:GOLDEN_PROMPTS])
    (workplace / "decision.json").write_text(decision, encoding="utf-8")
    files = _digest_files(workplace)
    if not version.files.items() <= files.items():
        raise ArtifactDamagedError(f"{adapter} changed while it was copied: release again")
    for name in files:
        (workplace / name).chmod(0o444)
        _sync(workplace / name)
    for path in (workplace, *(path for path in workplace.rglob("*") if path.is_dir())):
        _sync(path)
    write_atomically(workplace / VERSION_FILE, version.model_copy(update={"files": files}).model_dump_json(indent=2))
    final.parent.mkdir(exist_ok=True)
    workplace.rename(final)
    _sync(final.parent)


def _let_in(directory: Path, version: Version) -> None:
    now = aliases(directory.parents[1], directory.name)
    lines = _promotions(directory)
    starts = [*(line.from_version for line in lines[1:]), now.champion]
    came_true = [line for line, start in zip(lines, starts, strict=True) if start == line.to_version]
    if now.champion == version.version or any(
        (line.to_version, line.decision_digest) == (version.version, version.decision_digest) for line in came_true
    ):
        return
    candidate = None if now.candidate == version.version else now.candidate
    moved = Aliases(champion=version.version, candidate=candidate, previous=now.champion)
    _move(directory, now, moved, "release", version.decision_digest)


def _move(
    directory: Path, now: Aliases, moved: Aliases, what: Literal["release", "rollback"], decision_digest: str | None
) -> None:
    assert moved.champion is not None
    line = Promotion(
        what=what,
        from_version=now.champion,
        to_version=moved.champion,
        at=datetime.now(UTC),
        decision_digest=decision_digest,
    )
    last = next(reversed(_promotions(directory)), None)
    if last is None or last.model_copy(update={"at": line.at}) != line:
        _append(directory / "promotions.jsonl", line)
    write_atomically(directory / "aliases.json", moved.model_dump_json(indent=2))


def _append(path: Path, line: Promotion) -> None:
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # what a crash left of a line
        file.write(line.model_dump_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _promotions(directory: Path) -> list[Promotion]:
    path = directory / "promotions.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [Promotion.model_validate(orjson.loads(line)) for line in lines]


def _alias_of(now: Aliases, version: str) -> Alias | None:
    names: tuple[Alias, ...] = ("champion", "candidate", "previous")
    return next((name for name in names if getattr(now, name) == version), None)


@lru_cache(maxsize=256)
def _parse_aliases(raw: bytes) -> Aliases:
    return Aliases.model_validate_json(raw)


@lru_cache(maxsize=256)
def _parse_version(raw: bytes) -> Version:
    return Version.model_validate_json(raw)


def _read_version(directory: Path) -> Version:
    try:
        version = _parse_version((directory / VERSION_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        raise ArtifactDamagedError(f"{directory / VERSION_FILE} cannot be read: release the student again") from None
    if version.version != directory.name:
        raise ArtifactDamagedError(f"{directory} holds {version.name}: move it back to where it was written")
    return version


def _digest_files(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): file_sha256(path) for path in files}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
