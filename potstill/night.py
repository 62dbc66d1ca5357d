"""What a night looks at: the prompts that there are now, and those of the latest run of the recipe that was concluded."""

import glob
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from potstill.artifacts import ArtifactRef, ArtifactStore
from potstill.errors import ArtifactMissingError, DataError
from potstill.home import potstill_home
from potstill.inbox import inbox_path, seal
from potstill.recipe import INBOX, Recipe
from potstill.records import Row
from potstill.release import aliases
from potstill.run_record import RunRecord, latest_record


class News(Row):
    """How much a night has to do."""

    num_new: int
    """Prompts that the latest run did not have."""
    num_prompts: int
    latest_run: datetime | None
    """When the latest run was concluded; None where there was none, or where its prompts are gone."""
    champion: str | None
    """The version that serves."""
    missing_inbox: str | None = None
    """What is to be said where the recipe has an inbox and this machine has not."""

    def describe(self, min_new_prompts: int) -> str:
        """Why there is or is not enough to do, in one sentence."""
        since = f"since the run of {self.latest_run:%Y-%m-%d %H:%M} UTC" if self.latest_run else "and no run before"
        served = f"{self.champion} serves" if self.champion else "nothing serves yet"
        missing = f"; {self.missing_inbox}" if self.missing_inbox else ""
        return (
            f"{self.num_new} new prompts of {self.num_prompts} {since}, min_new_prompts is {min_new_prompts}; {served}"
            f"{missing}"
        )


def find_missing_inbox(recipe: Recipe, home: Path) -> str | None:
    """What is to be said where a recipe takes from its inbox, and there is none on this machine; None where all is well."""
    if INBOX not in recipe.curation.inputs or (found := inbox_path(home, recipe.name)).is_dir():
        return None
    return (
        f"there is no inbox {found} on this machine: either nothing has ever landed, or POTSTILL_HOME is not that of the "
        "webhook that takes it in"
    )


def take_in(recipe: Recipe) -> Recipe:
    """The recipe with what lies in its inbox now in place of the entry `inbox` of its inputs, if it has that.

    The files are sealed: they never change, so a run that goes on later reads the same.
    """
    given = recipe.curation.inputs
    if INBOX not in given:
        return recipe
    landed = tuple(glob.escape(str(path)) for path in seal(potstill_home(), recipe.name))
    inputs = tuple(name for name in given if name != INBOX) + landed
    return recipe.model_copy(update={"curation": recipe.curation.model_copy(update={"inputs": inputs})})


def compare(
    recipe: Recipe, prompts: ArtifactRef | None, store: ArtifactStore, is_waiting: Callable[[str], bool]
) -> News:
    """What is new in a prompt set; None is the set of a recipe for which nothing has landed yet.

    `is_waiting` says whether a run still waits for somebody's word, or goes on after it. One that ended without it, or crashed, concluded nothing:
    its student is made again, out of what is kept, and somebody is asked again.
    """
    found = set() if prompts is None else _prompt_ids(prompts, store)
    latest = _latest_run(store, recipe.name)
    if latest is not None and latest.approval is None and latest.asked_in and not is_waiting(latest.asked_in):
        latest = None
    known = None if latest is None else _known_ids(latest, store)
    return News(
        num_new=len(found - (known or set())),
        num_prompts=len(found),
        latest_run=None if latest is None or known is None else latest.written_at,
        champion=aliases(store.root, recipe.name).champion,
        missing_inbox=find_missing_inbox(recipe, store.root),
    )


def _latest_run(store: ArtifactStore, name: str) -> RunRecord | None:
    try:
        return latest_record(store.root, name)
    except DataError:
        return None


def _known_ids(run: RunRecord, store: ArtifactStore) -> set[str] | None:
    try:
        return _prompt_ids(run.prompts, store)
    except ArtifactMissingError:
        return None


def _prompt_ids(prompts: ArtifactRef, store: ArtifactStore) -> set[str]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(store.path(prompts) / "prompts.parquet", columns=["prompt_id"])
    return set(table.column("prompt_id").to_pylist())
