"""What a run found when it began holds where it goes on: after its word or a retry, with other inputs, on another machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from prefect.states import Scheduled

from potstill.artifacts import ArtifactRef, open_store
from potstill.inbox import Inbox
from potstill.night import News
from potstill.recipe import Recipe
from tasks.curation import curate
from tasks.night import look_for_news, take_in
from tasks.preflight import check

pytestmark = pytest.mark.flow


class Begun(NamedTuple):
    tonight: Recipe
    news: News
    prompts: ArtifactRef


SEEN: list[Begun] = []


@flow(persist_result=True, result_serializer="json")
def begin(recipe: Recipe) -> None:
    """How a night and a run by hand begin."""
    tonight = take_in(recipe)
    check(tonight)
    SEEN.append(Begun(tonight, look_for_news(recipe, tonight), curate(tonight)))


class Machine(NamedTuple):
    """A home, and a place for Prefect's results."""

    place: Path
    patch: pytest.MonkeyPatch

    def run(self, run: Any) -> Begun:
        self.patch.setenv("POTSTILL_HOME", str(self.place / "home"))
        with get_client(sync_client=True) as client, temporary_settings({PREFECT_LOCAL_STORAGE_PATH: self.place}):
            client.set_flow_run_state(run.id, Scheduled(), force=True)
            run_flow(begin, flow_run=client.read_flow_run(run.id), return_type="result")
        return SEEN[-1]


def new_run(recipe: Recipe) -> Any:
    with get_client(sync_client=True) as client:
        return client.create_flow_run(begin, parameters={"recipe": recipe.model_dump(mode="json")})


def test_a_run_goes_on_with_what_it_began_with_and_the_next_one_sees_what_came_meanwhile(
    store_kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_tickets: Callable[..., Any],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> None:
    here = Machine(tmp_path / "here", monkeypatch)
    there = here if store_kind == "disk" else Machine(tmp_path / "there", monkeypatch)
    log = write_tickets(tmp_path / "log", 60).log
    lines = write_tickets(tmp_path / "more", 30, first=60).log.read_bytes().splitlines(keepends=True)
    given = tiny_recipe(log, "http://127.0.0.1:9/v1", curation={"inputs": [str(log), "inbox"]})
    recipe = Recipe.model_validate(given)
    (here.place / "home").mkdir(parents=True)
    with Inbox(here.place / "home", "tickets") as inbox:
        inbox.land("msg_1", "0" * 64, lines[:10])

    run = new_run(recipe)
    first = here.run(run)
    assert (first.news.num_new, len(first.tonight.curation.inputs)) == (70, 2)

    with Inbox(here.place / "home", "tickets") as inbox:
        inbox.land("msg_2", "1" * 64, lines[10:])
    log.unlink()
    assert there.run(run) == first

    log.write_bytes(b"".join(lines[:5]))
    after = there.run(new_run(recipe))
    assert after.prompts != first.prompts
    assert (after.news.num_prompts, len(after.tonight.curation.inputs)) == ((30, 3) if there is here else (5, 1))
    assert (after.news.missing_inbox is None) == (there is here), "the other machine has no inbox, and says so"


def test_of_two_that_pin_at_once_both_get_what_the_first_one_pinned(
    store_kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path))
    pins = open_store().pins

    def find_while_another_is_faster() -> str:
        assert pins.keep("a/b", lambda: "theirs") == "theirs"
        return "ours"

    assert pins.read("a/b") is None
    assert pins.keep("a/b", find_while_another_is_faster) == "theirs"
    assert pins.keep("a/b", lambda: "later") == "theirs" == pins.read("a/b")
