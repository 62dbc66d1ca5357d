"""What would stop a run later, found before anything is started or paid for."""

from potstill.curation.curate import find_inputs
from potstill.llm.keys import find_key, key_variable
from potstill.llm.pricing import find_rates
from potstill.llm.providers import PROVIDERS
from potstill.llm.terms import check_terms
from potstill.recipe import Recipe
from potstill.student.base import find_base


def check(recipe: Recipe) -> None:
    """Check that inputs and base are there, and the teacher's terms, key and price known. Errors: as the stages raise them."""
    teacher = recipe.teacher
    provider = PROVIDERS[teacher.provider]
    base_url = (teacher.base_url or provider.default_base_url or "").rstrip("/")
    find_inputs(recipe.curation.inputs)
    find_base(recipe.student)
    check_terms(teacher)
    find_key(key_variable(teacher.api_key_env, provider, base_url), base_url)
    find_rates(teacher.provider, teacher.model, base_url, teacher.price)
