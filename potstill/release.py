"""Releases: versions are immutable, aliases move.

$POTSTILL_HOME/releases/<recipe>/
  versions/<sha12>/       adapter/, golden.jsonl, decision.json, and version.json written last; never changed after
  aliases.json            which version is champion, candidate, previous; replaced atomically
  promotions.jsonl        every move of the champion, appended before the alias moves; and every word on it

All that writes holds `releases/<recipe>/.lock`. A crash between any two steps leaves the old champion serving, and the
same `publish` again completes: a version appears by one rename, and `potstill.promotions` moves the alias last.

Where `POTSTILL_STORE` is set, all of it lies in the bucket, and below home are copies: see `potstill.shelves`.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from potstill.approval import APPROVAL_VARIABLE, Approval, needs_word
from potstill.artifacts import load_artifact, read_manifest
from potstill.errors import ReleaseError
from potstill.fingerprint import fingerprint
from potstill.promotions import Alias, Aliases, came_true
from potstill.records import Message, Row, adapter_name
from potstill.shelves import Shelf, State, all_versions, shelf_at
from potstill.student.base import PACKAGE_PREFIX, Base
from potstill.versions import ADAPTER, Version, adapter_files, releasable_files, verify, version_digest, write_version

if TYPE_CHECKING:
    from potstill.gate import GateDecision

__all__ = [
    "ADAPTER",
    "Aliases",
    "Golden",
    "Release",
    "Version",
    "adapter_files",
    "aliases",
    "all_recipes",
    "publish",
    "releases",
    "resolve",
    "rollback",
    "verify",
    "version_directory",
]

GOLDEN_PROMPTS = 20
MODEL_NAME = re.compile(r"(?P<recipe>[a-z0-9][a-z0-9-]{0,62})(@(?P<version>[0-9a-f]{12}))?")


class Golden(Row):
    """A prompt of the test split and the evaluated student's answer to it."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    expected: str


class Rival(NamedTuple):
    """Whom a decision compared a student with."""

    name: str | None
    """As it signs its answers; None where nobody served."""


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
    rival: Rival | None = None,
) -> Release:
    """Make a student that passed its gate a version, and the champion of its recipe.

    The same student again is the same version. A decision moves the champion once: publishing again on it changes
    nothing, so that a nightly re-run does not bring back what was rolled back; a new decision does.

    `adapter` is the directory of a StudentAdapter artefact, inside a store or not; `golden` are test prompts with the
    evaluated student's answers, of which the first 20 are kept; `max_tokens` is the limit it was evaluated with; `approval`
    goes into the log of moves, also where the student is the champion already; `rival`, where it is known, has to serve still.

    Errors: `ReleaseError` where the decision did not pass or is about another student, nobody's word is there and it needs one,
    another champion serves than the rival, the adapter could run code, or the name is no recipe's;
    `ArtifactMissingError`, `ArtifactDamagedError` where the adapter, or a version of the same digest, is not whole.
    """
    if decision.verdict != "passed":
        raise ReleaseError(f"release {recipe}: the gate's verdict is {decision.verdict}, only a passed one is released")
    _check_word(recipe, decision, approval)
    shelf = _shelf(home, recipe)
    artefact = load_artifact(adapter, "StudentAdapter")
    if decision.candidate not in {None, adapter_name(artefact.digest)}:
        raise ReleaseError(
            f"release {recipe}: the decision is about {decision.candidate}, this student is "
            f"{adapter_name(artefact.digest)}: let this one answer, be scored and decided on"
        )
    files = releasable_files(adapter / ADAPTER)
    digest = version_digest(files, base.identity, max_tokens)
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
    with shelf.lock():
        _check_rival(shelf, shelf.state(), version, rival)
        if shelf.holds(version.version):
            verify(shelf.bring(version.version))
        else:
            place, kept = shelf.workplace(version.version), golden[:GOLDEN_PROMPTS]
            shelf.add(write_version(place, version, adapter / ADAPTER, decision.model_dump_json(indent=2), kept))
        _let_in(shelf, version, approval, rival)
        now = shelf.aliases()
    return Release(version.version, now.previous, now.alias_of(version.version), digest)


def rollback(home: Path, recipe: str) -> Aliases:
    """Swap champion and previous; a second call swaps them back. The gateway follows with the next request.

    Errors: `ReleaseError` where no version served before; `ArtifactDamagedError` where that version cannot be read.
    """
    shelf = _shelf(home, recipe)
    if not shelf.exists():
        raise ReleaseError(f"rollback {recipe}: no such recipe was released; {_what_there_is(home)}")
    with shelf.lock():
        while True:
            before = shelf.state()
            now = before.aliases
            if now.champion is None or now.previous is None:
                raise ReleaseError(f"rollback {recipe}: no earlier version to go back to; champion is {now.champion}")
            shelf.read(now.previous)
            moved = now.model_copy(update={"champion": now.previous, "previous": now.champion})
            if shelf.move(before, moved, "rollback", None):
                return moved


def aliases(home: Path, recipe: str) -> Aliases:
    """Where the aliases of a recipe point now; all None where nothing was released."""
    return _shelf(home, recipe).aliases()


def releases(home: Path, recipe: str) -> list[Version]:
    """Every version of a recipe, oldest first."""
    return sorted(_shelf(home, recipe).read_all(), key=lambda version: version.created_at)


def all_recipes(home: Path) -> list[str]:
    """The names of the recipes that have a version."""
    return sorted({recipe for recipe, _ in all_versions(home)})


def resolve(home: Path, model: str) -> Version:
    """The version that a model's name means now: `<recipe>` is its champion, `<recipe>@<sha12>` that version.

    Errors: `ReleaseError` that lists what there is; `ArtifactDamagedError` where the version cannot be read.
    """
    match = MODEL_NAME.fullmatch(model)
    if match is None:
        raise ReleaseError(f"model {model!r}: a name is <recipe> or <recipe>@<12 hex digits>; {_what_there_is(home)}")
    recipe = match["recipe"]
    shelf = _shelf(home, recipe)
    version = match["version"] or shelf.aliases().champion
    if version is None or not shelf.holds(version):
        raise ReleaseError(f"model {model!r} is not released; {_what_there_is(home)}")
    return shelf.read(version)


def version_directory(home: Path, version: Version) -> Path:
    """Where the files of a version are; with a bucket they are brought there, every byte verified."""
    return _shelf(home, version.recipe).bring(version.version)


def _shelf(home: Path, recipe: str) -> Shelf:
    if MODEL_NAME.fullmatch(recipe) is None or "@" in recipe:
        raise ReleaseError(f"{recipe!r} is no recipe's name: lower-case letters, digits and hyphens")
    return shelf_at(home / "releases" / recipe)


def _what_there_is(home: Path) -> str:
    names = ", ".join(f"{recipe}@{version}" for recipe, version in all_versions(home))
    return f"released: {names}" if names else "nothing is released yet: run a recipe with `potstill run`"


def _check_word(recipe: str, decision: "GateDecision", approval: Approval | None) -> None:
    if approval is not None and not approval.is_approved:
        raise ReleaseError(f"release {recipe}: {approval.approver} said no: {approval.reason}")
    if approval is None and needs_word():
        raise ReleaseError(
            f"release {recipe}: {APPROVAL_VARIABLE} is ask here, and nobody has approved this student: name who does, and why"
        )
    if approval is None and decision.candidate is None:
        raise ReleaseError(
            f"release {recipe}: the decision names no student, so somebody has to vouch that it is about this one: name "
            "who does, and why; or let the gate read what evaluate wrote"
        )


def _is_settled(now: State, version: Version) -> bool:
    """Whether its decision has moved the champion before, or has no need to."""
    champion = now.aliases.champion
    spent = {(line.to_version, line.decision_digest) for line in came_true(now.lines, champion)}
    return champion == version.version or (version.version, version.decision_digest) in spent


def _check_rival(shelf: Shelf, now: State, version: Version, rival: Rival | None) -> None:
    """A decision holds against the champion that it compared with. The same weights under another limit are no other."""
    if rival is None or _is_settled(now, version):
        return
    champion = None if now.aliases.champion is None else shelf.read(now.aliases.champion)
    if champion is not None and adapter_files(champion) == adapter_files(version):
        return
    if rival.name != (None if champion is None else adapter_name(champion.adapter_digest)):
        raise ReleaseError(
            f"release {version.recipe}: the student was compared with {rival.name or 'no champion'}, and now "
            f"{'nothing' if champion is None else f'{champion.name} ({adapter_name(champion.adapter_digest)})'} serves: start "
            "the recipe again, it compares anew and pays for no answer twice"
        )


def _let_in(shelf: Shelf, version: Version, approval: Approval | None, rival: Rival | None) -> None:
    while True:
        before = shelf.state()
        now = before.aliases
        if now.champion == version.version:
            if approval is None or _is_on_record(before, version, approval):
                return
            what, moved = "approval", now
        elif _is_settled(before, version):
            return
        else:
            _check_rival(shelf, before, version, rival)
            candidate = None if now.candidate == version.version else now.candidate
            what, moved = "release", Aliases(champion=version.version, candidate=candidate, previous=now.champion)
        if shelf.move(before, moved, what, version.decision_digest, approval):
            return


def _is_on_record(now: State, version: Version, approval: Approval) -> bool:
    return any(
        line.to_version == version.version
        and line.decision_digest == version.decision_digest
        and approval.repeats(line.approval)
        for line in came_true(now.lines, now.aliases.champion)
    )
