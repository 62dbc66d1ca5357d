"""What a night finds new, and what of the runs before it counts as concluded."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from potstill.approval import Approval
from potstill.artifacts import ArtifactRef, ArtifactStore, StageKey
from potstill.inbox import Inbox
from potstill.night import News, compare, find_missing_inbox, take_in
from potstill.recipe import Recipe
from potstill.run_record import RunRecord, find_record

RECIPE = Recipe.model_validate(
    {
        "name": "tickets",
        "task": {"kind": "extraction"},
        "curation": {"inputs": ["logs/*.jsonl", "inbox"]},
        "teacher": {"model": "m"},
        "student": {"base": "x"},
    }
)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def prompt_set(store: ArtifactStore, *ids: str) -> ArtifactRef:
    def write(directory: Path) -> int:
        pyarrow.parquet.write_table(pa.table({"prompt_id": list(ids)}), directory / "prompts.parquet")
        return len(ids)

    return store.build(StageKey("curate", 1, "-".join(ids)), "PromptSet", write)


def conclude(store: ArtifactStore, prompts: ArtifactRef, **what: Any) -> None:
    others = ("completions", "dataset", "student", "evaluation", "decision")
    RunRecord(recipe=RECIPE, prompts=prompts, **dict.fromkeys(others, prompts), **what).write(store.root)


def look(store: ArtifactStore, *ids: str, waiting: bool = False) -> News:
    return compare(RECIPE, prompt_set(store, *ids) if ids else None, store, lambda _: waiting)


def test_without_a_run_before_all_is_new_and_an_empty_inbox_is_nothing(store: ArtifactStore) -> None:
    Inbox(store.root, "tickets").close()
    assert look(store, "a", "b").num_new == 2
    nothing = look(store)
    assert (nothing.num_new, nothing.num_prompts, nothing.latest_run) == (0, 0, None)
    assert nothing.describe(5) == "0 new prompts of 0 and no run before, min_new_prompts is 5; nothing serves yet"


def test_only_what_the_latest_run_lacked_is_new(store: ArtifactStore) -> None:
    conclude(store, prompt_set(store, "a", "b"))
    found = look(store, "b", "c", "d")
    assert (found.num_new, found.num_prompts) == (2, 3)
    assert found.latest_run == find_record(store.root, "tickets").written_at


def test_a_file_that_is_called_like_the_recipe_is_no_record(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker stands wherever it was started, perhaps beside an export of that name."""
    conclude(store, prompt_set(store, "a", "b"))
    monkeypatch.chdir(tmp_path)
    Path("tickets").write_text("not a record")
    assert look(store, "a", "b").num_new == 0


def test_where_the_latest_runs_prompts_are_gone_all_is_new(store: ArtifactStore) -> None:
    gone = prompt_set(store, "a")
    conclude(store, gone)
    (store.path(gone) / "manifest.json").unlink()
    found = look(store, "a", "b")
    assert (found.num_new, found.latest_run) == (2, None)


def test_a_run_that_waits_for_a_word_has_concluded_and_one_that_nobody_answered_has_not(store: ArtifactStore) -> None:
    conclude(store, prompt_set(store, "a", "b"), asked_in="a run")
    assert look(store, "a", "b", waiting=True).num_new == 0
    assert look(store, "a", "b", waiting=False).num_new == 2


@pytest.mark.parametrize("is_approved", [True, False])
def test_a_run_that_was_answered_has_concluded_whatever_was_said(store: ArtifactStore, is_approved: bool) -> None:
    word = Approval.model_validate(
        {"is_approved": is_approved, "approver": "Jo", "reason": "x", "at": "2026-01-01T00:00:00Z"}
    )
    conclude(store, prompt_set(store, "a"), asked_in="a run", approval=word)
    assert look(store, "a", waiting=False).num_new == 0


def test_a_record_that_is_written_again_keeps_its_date(store: ArtifactStore) -> None:
    conclude(store, prompt_set(store, "a"))
    before = find_record(store.root, "tickets")
    before.write(store.root)
    assert find_record(store.root, "tickets") == before


def test_a_machine_without_the_inbox_that_a_recipe_names_says_so_with_the_news(store: ArtifactStore) -> None:
    """Another machine than the webhook's, or another POTSTILL_HOME, would else take in nothing, night for night."""
    said = look(store).describe(5)
    assert said.startswith("0 new prompts of 0 and no run before")
    assert f"there is no inbox {store.root / 'inbox' / 'tickets'} on this machine" in said
    assert "POTSTILL_HOME" in said
    by_logs = RECIPE.model_copy(update={"curation": RECIPE.curation.model_copy(update={"inputs": ("logs/*.jsonl",)})})
    assert find_missing_inbox(by_logs, store.root) is None
    Inbox(store.root, "tickets").close()
    assert look(store).missing_inbox is None


def test_the_entry_inbox_becomes_the_files_that_it_holds_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "a [home]"
    monkeypatch.setenv("POTSTILL_HOME", str(home))
    assert take_in(RECIPE).curation.inputs == ("logs/*.jsonl",)
    with Inbox(home, "tickets") as inbox:
        inbox.land("msg_1", "0" * 64, [b'{"messages": [{"role": "user", "content": "hi"}]}\n'])
    logs, segment = take_in(RECIPE).curation.inputs
    assert logs == "logs/*.jsonl"
    [path] = tmp_path.glob("a*/inbox/tickets/segments/*.jsonl")
    assert segment == str(path).replace("[", "[[]"), "a name is no pattern"
    assert take_in(RECIPE).curation.inputs == (logs, segment), "what is sealed stays as it is"
