"""One file a provider: how a request is written, a reply read, an error understood."""

from potstill.llm.providers.anthropic import Anthropic
from potstill.llm.providers.base import Provider
from potstill.llm.providers.openai import OpenAI
from potstill.llm.providers.openai_compatible import OpenAICompatible

PROVIDERS: dict[str, Provider] = {provider.name: provider for provider in (OpenAI(), Anthropic(), OpenAICompatible())}
