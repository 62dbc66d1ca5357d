"""What would stop a run later, found before anything is started or paid for."""

from potstill.approval import needs_word
from potstill.cluster import find_cluster
from potstill.curation.inputs import find_inputs
from potstill.errors import DataError, NotAuthorisedError
from potstill.home import potstill_home
from potstill.inbox import lying_in
from potstill.llm.endpoint import endpoint_of
from potstill.llm.keys import LoadBlock, check_block_host
from potstill.llm.pricing import find_rates
from potstill.llm.providers import base_url_of
from potstill.llm.terms import check_terms
from potstill.night import find_missing_inbox
from potstill.object_store import open_remote
from potstill.recipe import INBOX, Recipe
from potstill.roots import ROOTS_VARIABLE, is_confined
from potstill.scorers import scorer_of
from potstill.student.base import find_base


def check(
    recipe: Recipe, load_block: LoadBlock | None = None, *, is_deployed: bool = False, has_prompts: bool = False
) -> None:
    """Check that inputs, base, scorer and the named Dask workers are there, the teacher's terms, key and price known, the
    operator's variables well formed, and the bucket of `POTSTILL_STORE`, if there is one, fit to release from.

    Args:
        recipe: what is to be run.
        load_block: reads secret blocks; without it, outside of a flow, only where a block's key may go is checked.
        is_deployed: whether the recipe came as a parameter of a deployment, which anybody who reaches it may set.
        has_prompts: whether the prompts have been read already, perhaps on another machine: the inputs are needed no more.

    Nothing is taken out of the recipe's inbox: what this refuses leaves the prompts there to whatever run comes next.

    Errors: as the stages raise them; `NotAuthorisedError` where a deployed run would read whatever its recipe names.
    """
    if is_deployed and not is_confined():  # Prefect no longer says so to the process: nothing would be guarded
        raise NotAuthorisedError(
            f"a deployed run reads only what {ROOTS_VARIABLE} names: set it for the worker to the directories of its recipes"
        )
    needs_word(recipe)
    teacher = recipe.teacher
    base_url = base_url_of(teacher)
    if not has_prompts:
        _check_inputs(recipe)
    find_base(recipe.student)
    scorer_of(recipe.task)
    check_terms(teacher)
    if teacher.api_key_block is not None and load_block is None:
        check_block_host(teacher.api_key_block, base_url)
    else:
        endpoint_of(teacher, load_block)
    if recipe.compute.teach == "dask":
        find_cluster(teacher)
    find_rates(teacher.provider, teacher.model, base_url, teacher.price)
    if (remote := open_remote()) is not None:
        remote.require_conditions()  # the release would ask, once teacher and training are paid for


def _check_inputs(recipe: Recipe) -> None:
    """The files that are named, and whatever lies in the inbox. A recipe that names no inbox makes no state directory."""
    if INBOX not in recipe.curation.inputs:
        find_inputs(recipe.curation.inputs)
        return
    home = potstill_home()
    named = tuple(name for name in recipe.curation.inputs if name != INBOX)
    if not named and (missing := find_missing_inbox(recipe, home)) is not None:
        raise DataError(missing)
    landed = lying_in(home, recipe.name)
    find_inputs(named if landed is None else (*named, landed))
