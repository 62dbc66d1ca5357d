"""What would stop a run later, found before anything is started or paid for."""

from potstill.cluster import find_cluster
from potstill.curation.curate import find_inputs
from potstill.llm.endpoint import endpoint_of
from potstill.llm.keys import LoadBlock, check_block_host
from potstill.llm.pricing import find_rates
from potstill.llm.providers import base_url_of
from potstill.llm.terms import check_terms
from potstill.recipe import Recipe
from potstill.student.base import find_base


def check(recipe: Recipe, load_block: LoadBlock | None = None) -> None:
    """Check that inputs and base are there, the teacher's terms, key and price known, and Dask's workers named where they
    ask. Errors: as the stages raise them.

    `load_block` reads secret blocks; without it, outside of a flow, only where a block's key may go is checked.
    """
    teacher = recipe.teacher
    base_url = base_url_of(teacher)
    find_inputs(recipe.curation.inputs)
    find_base(recipe.student)
    check_terms(teacher)
    if teacher.api_key_block is not None and load_block is None:
        check_block_host(teacher.api_key_block, base_url)
    else:
        endpoint_of(teacher, load_block)
    if recipe.compute.teach == "dask":
        find_cluster(teacher)
    find_rates(teacher.provider, teacher.model, base_url, teacher.price)
