"""What would stop a run later, found before anything is started or paid for."""

from potstill.curation.curate import find_inputs
from potstill.llm.keys import find_key
from potstill.llm.pricing import find_rates
from potstill.llm.providers import PROVIDERS
from potstill.llm.terms import check_terms
from potstill.recipe import Recipe
from potstill.student.base import find_base


def check(recipe: Recipe) -> None:
    """Check that inputs and base are there, and the teacher's terms, key and price known. Errors: as the stages raise them."""
    teacher = recipe.teacher
    base_url = teacher.base_url or PROVIDERS[teacher.provider].default_base_url or ""
    find_inputs(recipe.curation.inputs)
    find_base(recipe.student)
    check_terms(teacher)
    find_key(teacher.api_key_env, base_url)
    find_rates(teacher.provider, teacher.model, base_url, teacher.price)
