"""What one run made, by reference: enough to write its report at any later time."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from potstill.approval import Approval, needs_word
from potstill.artifacts import ArtifactRef, write_atomically
from potstill.errors import DataError
from potstill.object_store import ObjectStore, open_remote
from potstill.recipe import Recipe
from potstill.records import Row
from potstill.release import Release

RECORD = "run.json"


class RunRecord(Row):
    """The artefacts of a run, from the prompts to the release."""

    recipe: Recipe
    prompts: ArtifactRef
    completions: ArtifactRef
    dataset: ArtifactRef
    student: ArtifactRef
    evaluation: ArtifactRef
    decision: ArtifactRef
    approval: Approval | None = None
    """None where nobody is asked, or nobody has answered yet."""
    asked_in: str | None = None
    """The run on a Prefect server that waits for somebody's word on it."""
    release: Release | None = None
    """None where the gate did not pass, or the student is not approved."""

    written_at: datetime | None = None
    """None until it is written."""

    @property
    def awaits_approval(self) -> bool:
        """Whether a student, should it have passed, would have to be approved, and nobody has said a word yet."""
        return self.approval is None and needs_word(self.recipe)

    def directory(self, home: Path) -> Path:
        """Where its report is kept: a run of the same recipe writes to the same place."""
        return home / "reports" / self.recipe.name / self.recipe.fingerprint[:12]

    def write(self, home: Path) -> None:
        """Write it below home and, with what else is in its folder, into the bucket that `POTSTILL_STORE` names."""
        directory = self.directory(home)
        at = self.written_at or datetime.now(UTC)
        dated = self.model_copy(update={"written_at": at})
        write_atomically(directory / RECORD, dated.model_dump_json(indent=2))
        os.utime(directory / RECORD, (at.timestamp(), at.timestamp()))  # an old run that is shown again stays old
        if (remote := open_remote()) is not None:
            others = sorted(path for path in directory.iterdir() if path.is_file() and path.name != RECORD)
            for path in (*others, directory / RECORD):
                remote.upload(path, str(PurePosixPath(path.relative_to(home))))


def find_record(home: Path, name: str) -> RunRecord:
    """The record of a recipe's latest run, or of a run.json by its path.

    Errors: `DataError` where there is none, or where it cannot be read.
    """
    path = Path(name)
    if path.is_file():
        return _read(path)
    remote = open_remote()
    found = _latest_here(home, name) if remote is None else _latest_in(remote, home, name)
    if found is None:
        where, known = (f" in {remote.address}", _known_in(remote)) if remote else ("", _known_here(home))
        raise DataError(f"no run of a recipe named {name!r}{where}; runs of: {', '.join(known) or 'none yet'}")
    return _read(found)


def latest_record(home: Path, recipe: str) -> RunRecord | None:
    """The record of a recipe's latest run; None where it had none. Errors: `DataError` where it cannot be read."""
    remote = open_remote()
    found = _latest_here(home, recipe) if remote is None else _latest_in(remote, home, recipe)
    return None if found is None else _read(found)


def _latest_here(home: Path, recipe: str) -> Path | None:
    found = (home / "reports" / recipe).glob(f"*/{RECORD}")
    return max(found, key=lambda record: record.stat().st_mtime, default=None)


def _known_here(home: Path) -> list[str]:
    return sorted({record.parents[1].name for record in (home / "reports").glob(f"*/*/{RECORD}")})


def _latest_in(remote: ObjectStore, home: Path, recipe: str) -> Path | None:
    """The latest record of the bucket, brought here."""
    latest = max(((at, name) for name, at in _records(remote) if PurePosixPath(name).parts[1] == recipe), default=None)
    if latest is None:
        return None
    path = home / latest[1]
    remote.download(latest[1], path)
    return path


def _known_in(remote: ObjectStore) -> list[str]:
    return sorted({PurePosixPath(name).parts[1] for name, _ in _records(remote)})


def _records(remote: ObjectStore) -> Iterator[tuple[str, datetime]]:
    return ((name, at) for name, at in remote.names("reports").items() if name.endswith(f"/{RECORD}"))


def _read(path: Path) -> RunRecord:
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except ValidationError:
        raise DataError(f"{path}: no record of a run: name a recipe, or the {RECORD} that its run wrote") from None
