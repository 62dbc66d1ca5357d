"""Releases: versions are immutable, aliases move.

$POTSTILL_HOME/releases/<recipe>/
  versions/<sha12>/       adapter/, golden.jsonl, decision.json, and version.json written last; never changed after
  aliases.json            which version is champion, candidate, previous; replaced atomically
  promotions.jsonl        every move of the champion, appended before the alias moves

All that writes holds `releases/<recipe>/.lock`. A crash between any two steps leaves the old champion serving, and the
same `publish` again completes: a version appears by one rename, and `potstill.promotions` moves the alias last.
"""

import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from filelock import FileLock
from pydantic import ValidationError

from potstill.approval import Approval
from potstill.artifacts import digest_files, load_artifact, read_manifest, sync, write_atomically
from potstill.errors import ArtifactDamagedError, ReleaseError
from potstill.fingerprint import fingerprint
from potstill.promotions import Alias, Aliases, came_true, move, promotions, read_aliases
from potstill.records import Message, Row, TeacherTerms, adapter_name, write_jsonl
from potstill.student.base import PACKAGE_PREFIX, Base

if TYPE_CHECKING:
    from potstill.gate import GateDecision

ADAPTER = "adapter"
GOLDEN_PROMPTS = 20
VERSION_FILE = "version.json"
MODEL_NAME = re.compile(r"(?P<recipe>[a-z0-9][a-z0-9-]{0,62})(@(?P<version>[0-9a-f]{12}))?")
CODE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py"})
"""Files that run code when they are loaded."""


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
    teacher_terms: tuple[TeacherTerms, ...] = ()
    """Of the teachers that it learned from, as its artefact's manifest holds them."""

    @property
    def name(self) -> str:
        """What clients call it: `<recipe>@<sha12>`."""
        return f"{self.recipe}@{self.version}"


class Golden(Row):
    """A prompt of the test split and the evaluated student's answer to it."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    expected: str


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
    base: Base,
    decision: "GateDecision",
    golden: Sequence[Golden],
    max_tokens: int,
    approval: Approval | None = None,
) -> Release:
    """Make a student that passed its gate a version, and the champion of its recipe.

    The same student again is the same version. A decision moves the champion once: publishing again on it changes
    nothing, so that a nightly re-run does not bring back what was rolled back; a new decision does.

    `adapter` is the directory of a StudentAdapter artefact, inside a store or not; `golden` are test prompts with the
    evaluated student's answers, of which the first 20 are kept; `max_tokens` is the limit it was evaluated with; `approval`
    goes into the log of moves.

    Errors: `ReleaseError` where the decision did not pass or is about another student, the adapter could run code, or the name is no recipe's;
    `ArtifactMissingError`, `ArtifactDamagedError` where the adapter, or a version of the same digest, is not whole.
    """
    if decision.verdict != "passed":
        raise ReleaseError(f"release {recipe}: the gate's verdict is {decision.verdict}, only a passed one is released")
    directory = _recipe_directory(home, recipe)
    artefact = load_artifact(adapter, "StudentAdapter")
    if decision.candidate not in {None, adapter_name(artefact.digest)}:
        raise ReleaseError(
            f"release {recipe}: the decision is about {decision.candidate}, this student is "
            f"{adapter_name(artefact.digest)}: let this one answer, be scored and decided on"
        )
    files = _adapter_files(adapter / ADAPTER)
    digest = _digest(files, base.identity, max_tokens)
    version = Version(
        recipe=recipe,
        version=digest[:12],
        digest=digest,
        base_location=base.student.base if base.student.base.startswith(PACKAGE_PREFIX) else base.location,
        base_revision=base.revision,
        base_identity=base.identity,
        adapter_digest=artefact.digest,
        decision_digest=fingerprint(decision),
        max_tokens=max_tokens,
        created_at=datetime.now(UTC),
        files=files,
        teacher_terms=read_manifest(adapter).teacher_terms,
    )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(directory / ".lock"):
        final = directory / "versions" / version.version
        if final.exists():
            verify(final)
        else:
            _write_version(final, version, adapter / ADAPTER, decision.model_dump_json(indent=2), golden)
        _let_in(directory, version, approval)
        now = aliases(home, recipe)
    return Release(version.version, now.previous, now.alias_of(version.version), digest)


def rollback(home: Path, recipe: str) -> Aliases:
    """Swap champion and previous; a second call swaps them back. The gateway follows with the next request.

    Errors: `ReleaseError` where no version served before; `ArtifactDamagedError` where that version cannot be read.
    """
    directory = _recipe_directory(home, recipe)
    if not directory.is_dir():
        raise ReleaseError(f"rollback {recipe}: no such recipe was released; {_what_there_is(home)}")
    with FileLock(directory / ".lock"):
        now = aliases(home, recipe)
        if now.champion is None or now.previous is None:
            raise ReleaseError(f"rollback {recipe}: no earlier version to go back to; champion is {now.champion}")
        _read_version(directory / "versions" / now.previous)
        moved = now.model_copy(update={"champion": now.previous, "previous": now.champion})
        move(directory, now, moved, "rollback", None)
    return moved


def aliases(home: Path, recipe: str) -> Aliases:
    """Where the aliases of a recipe point now; all None where nothing was released."""
    return read_aliases(_recipe_directory(home, recipe))


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


def adapter_files(version: Version) -> dict[str, str]:
    """The sha256 of each file of its adapter, by its path below the adapter's directory."""
    return {
        name.removeprefix(f"{ADAPTER}/"): digest
        for name, digest in version.files.items()
        if name.startswith(f"{ADAPTER}/")
    }


def verify(directory: Path) -> Version:
    """Check every file of a version against its sha256, that nothing was added, and its name against what it holds.

    Errors: `ArtifactDamagedError` naming the files that are missing, changed or strange.
    """
    version = _read_version(directory)
    adapter = {name: digest for name, digest in version.files.items() if name.startswith(f"{ADAPTER}/")}
    if version.digest != _digest(adapter, version.base_identity, version.max_tokens):
        raise ArtifactDamagedError(f"{directory / VERSION_FILE} was changed: move the directory away and release again")
    found = digest_files(directory)
    found.pop(VERSION_FILE)
    wrong = sorted(name for name in found.keys() | version.files.keys() if found.get(name) != version.files.get(name))
    if wrong:
        raise ArtifactDamagedError(
            f"{directory}: {', '.join(wrong)} differ from {VERSION_FILE}: move the directory away and release again"
        )
    return version


def _digest(adapter_files: dict[str, str], base_identity: str, max_tokens: int) -> str:
    return fingerprint({"files": adapter_files, "base": base_identity, "max_tokens": max_tokens})


def _recipe_directory(home: Path, recipe: str) -> Path:
    if MODEL_NAME.fullmatch(recipe) is None or "@" in recipe:
        raise ReleaseError(f"{recipe!r} is no recipe's name: lower-case letters, digits and hyphens")
    return home / "releases" / recipe


def _what_there_is(home: Path) -> str:
    found = sorted((home / "releases").glob(f"*/versions/*/{VERSION_FILE}"))
    names = ", ".join(f"{path.parents[2].name}@{path.parent.name}" for path in found)
    return f"released: {names}" if names else "nothing is released yet: run a recipe with `potstill run`"


def _adapter_files(directory: Path) -> dict[str, str]:
    """Digests by path below the version's directory, of an adapter that cannot run code."""
    if not (directory / "adapter_model.safetensors").is_file():
        raise ReleaseError(f"{directory}: no adapter_model.safetensors in it: only safetensors are released")
    for path in sorted(directory.rglob("*")):
        if path.suffix in CODE_SUFFIXES or path.is_symlink():
            raise ReleaseError(f"{path}: only safetensors, JSON and text are released: remove it from the adapter")
        if path.name.endswith("config.json") and _has_auto_map(path):
            raise ReleaseError(f"{path}: auto_map runs code out of the model's directory: remove it")
    return {f"{ADAPTER}/{name}": digest for name, digest in digest_files(directory).items()}


def _has_auto_map(path: Path) -> bool:
    try:
        content = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        raise ReleaseError(f"{path} is no JSON: train the student again") from None
    return isinstance(content, dict) and bool(content.get("auto_map"))


def _write_version(final: Path, version: Version, adapter: Path, decision: str, golden: Sequence[Golden]) -> None:
    workplace = final.parents[1] / "tmp" / version.version
    shutil.rmtree(workplace, ignore_errors=True)
    workplace.mkdir(parents=True)
    shutil.copytree(adapter, workplace / ADAPTER, copy_function=shutil.copyfile)
    write_jsonl(workplace / "golden.jsonl", golden[:GOLDEN_PROMPTS])
    (workplace / "decision.json").write_text(decision, encoding="utf-8")
    files = digest_files(workplace)
    if not version.files.items() <= files.items():
        raise ArtifactDamagedError(f"{adapter} changed while it was copied: release again")
    for name in files:
        (workplace / name).chmod(0o444)
        sync(workplace / name)
    for path in (workplace, *(path for path in workplace.rglob("*") if path.is_dir())):
        sync(path)
    write_atomically(workplace / VERSION_FILE, version.model_copy(update={"files": files}).model_dump_json(indent=2))
    (workplace / VERSION_FILE).chmod(0o444)
    final.parent.mkdir(exist_ok=True)
    workplace.rename(final)
    sync(final.parent)
    sync(final.parents[1])


def _let_in(directory: Path, version: Version, approval: Approval | None) -> None:
    now = read_aliases(directory)
    spent = {(line.to_version, line.decision_digest) for line in came_true(promotions(directory), now.champion)}
    if now.champion == version.version or (version.version, version.decision_digest) in spent:
        return
    candidate = None if now.candidate == version.version else now.candidate
    moved = Aliases(champion=version.version, candidate=candidate, previous=now.champion)
    move(directory, now, moved, "release", version.decision_digest, approval)


@lru_cache(maxsize=256)
def _parse_version(raw: bytes) -> Version:
    return Version.model_validate_json(raw)


def _read_version(directory: Path) -> Version:
    try:
        version = _parse_version((directory / VERSION_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        raise ArtifactDamagedError(f"{directory / VERSION_FILE} cannot be read: release the student again") from None
    if version.version != directory.name or version.version != version.digest[:12]:
        raise ArtifactDamagedError(f"{directory} holds {version.name}: move it back to where it was written")
    return version
