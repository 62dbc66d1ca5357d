"""OpenAI itself: its address, its key, and its name for the longest answer."""

from potstill.llm.providers.openai_compatible import OpenAICompatible


class OpenAI(OpenAICompatible):
    name = "openai"
    default_base_url = "https://api.openai.com/v1"
    default_key_env = "OPENAI_API_KEY"
    max_tokens_field = "max_completion_tokens"
