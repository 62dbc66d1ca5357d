"""OpenAI itself: its address, its key, its name for the longest answer and its hint for the prompt cache."""

from typing import Any

from potstill.llm.messages import ChatRequest, shared_prefix
from potstill.llm.providers.openai_compatible import OpenAICompatible


class OpenAI(OpenAICompatible):
    name = "openai"
    default_base_url = "https://api.openai.com/v1"
    default_key_env = "OPENAI_API_KEY"
    max_tokens_field = "max_completion_tokens"

    def body(self, request: ChatRequest, *, cache_prefix: bool = False) -> dict[str, Any]:
        """OpenAI caches by itself; the key sends requests with one prefix to machines that hold it."""
        prefix = shared_prefix(request) if cache_prefix else None
        return super().body(request) | ({"prompt_cache_key": prefix} if prefix else {})
