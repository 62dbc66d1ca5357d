"""One file a provider: how a request is written, a reply read, an error understood."""

from potstill.llm.providers.anthropic import Anthropic
from potstill.llm.providers.base import Provider
from potstill.llm.providers.openai import OpenAI
from potstill.llm.providers.openai_compatible import OpenAICompatible
from potstill.recipe import Teacher

PROVIDERS: dict[str, Provider] = {provider.name: provider for provider in (OpenAI(), Anthropic(), OpenAICompatible())}


def address_of(provider: Provider, base_url: str | None) -> str:
    """Where a provider is asked: at the address that is given, else at its own; "" where there is neither."""
    return (base_url or provider.default_base_url or "").rstrip("/")


def base_url_of(teacher: Teacher) -> str:
    """Where a teacher is asked."""
    return address_of(PROVIDERS[teacher.provider], teacher.base_url)
