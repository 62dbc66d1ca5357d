"""Which version of a recipe serves: aliases.json, and promotions.jsonl, the log of every move and of every word on it.

The log comes before the alias. A crash between the two leaves the old champion serving and a last line that did not come
true: the next line starts from the champion that really served, and the same move again writes no second line.
Who moves an alias holds `releases/<recipe>/.lock`; who reads one needs no lock.
"""

import os
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from potstill.approval import Approval
from potstill.artifacts import write_atomically
from potstill.errors import ArtifactDamagedError
from potstill.records import Row

ALIASES_FILE = "aliases.json"
PROMOTIONS_FILE = "promotions.jsonl"

Alias = Literal["champion", "candidate", "previous"]
Move = Literal["release", "rollback", "approval"]
"""An approval moves nothing: it is a word on the version that is the champion already."""


class Aliases(Row):
    champion: str | None = None
    """The version that answers to the recipe's name."""
    candidate: str | None = None
    previous: str | None = None
    """The version that served before; a rollback swaps it with the champion."""

    def alias_of(self, version: str) -> Alias | None:
        names: tuple[Alias, ...] = ("champion", "candidate", "previous")
        return next((name for name in names if getattr(self, name) == version), None)


class Promotion(Row):
    """A move of the champion, or a word on it. It came true where the next line, or the champion of today, starts from
    `to_version`.
    """

    what: Move
    from_version: str | None
    to_version: str
    at: datetime
    decision_digest: str | None
    """The gate decision behind it; None for a rollback."""
    approval: Approval | None = None
    """Who let it in, where somebody was asked."""

    def repeats(self, other: "Promotion | None") -> bool:
        """Whether it is the same line, written again after a crash. Another approver's is not."""
        if other is None:
            return False
        word, earlier = self.approval, other.approval
        is_same_word = earlier is None if word is None else word.repeats(earlier)
        return is_same_word and self.model_copy(update={"at": other.at, "approval": earlier}) == other


def read_aliases(directory: Path) -> Aliases:
    """Where the aliases point now; all None where nothing was released. Errors: `ArtifactDamagedError`."""
    path = directory / ALIASES_FILE
    try:
        return _parse(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return Aliases()
    except ValidationError:
        raise ArtifactDamagedError(
            f"{path} cannot be read: mend it by hand, {PROMOTIONS_FILE} tells the moves"
        ) from None


def promotions(directory: Path) -> list[Promotion]:
    """The log, oldest line first; what a crash left of a line is no line. Errors: `ArtifactDamagedError`."""
    path = directory / PROMOTIONS_FILE
    return parse_promotions(path.read_bytes(), str(path)) if path.exists() else []


def parse_promotions(raw: bytes, place: str) -> list[Promotion]:
    """The log out of its bytes. Errors: as `promotions`."""
    try:
        return [Promotion.model_validate_json(line) for line in raw.split(b"\n")[:-1]]
    except ValidationError:
        raise ArtifactDamagedError(f"{place} holds a line that is no move: mend it by hand") from None


def came_true(lines: list[Promotion], champion: str | None) -> list[Promotion]:
    """The lines of the log whose move really happened, by the champion of today."""
    starts = [*(line.from_version for line in lines[1:]), champion]
    return [line for line, start in zip(lines, starts[: len(lines)], strict=True) if start == line.to_version]


def move(
    directory: Path,
    now: Aliases,
    moved: Aliases,
    what: Move,
    decision_digest: str | None,
    approval: Approval | None = None,
) -> None:
    """Log a move of the champion, then make it."""
    assert moved.champion is not None
    line = Promotion(
        what=what,
        from_version=now.champion,
        to_version=moved.champion,
        at=datetime.now(UTC),
        decision_digest=decision_digest,
        approval=approval,
    )
    last = next(reversed(promotions(directory)), None)
    if not line.repeats(last):
        _append(directory / PROMOTIONS_FILE, line)
    write_atomically(directory / ALIASES_FILE, moved.model_dump_json(indent=2))


def _append(path: Path, line: Promotion) -> None:
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.model_dump_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


@lru_cache(maxsize=256)
def _parse(raw: bytes) -> Aliases:
    return Aliases.model_validate_json(raw)
