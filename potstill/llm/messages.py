"""What goes to an endpoint and what comes back, in the terms of no provider in particular."""

import hashlib
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import orjson

from potstill.fingerprint import fingerprint
from potstill.records import Message, Row, Usage

SYSTEM_ROLES = frozenset({"system", "developer"})
"""OpenAI's newer models call the system prompt the developer's."""
TOOL_TOKENS = 1000
IMAGE_TOKENS = 50_000
SHORTEST_CACHED_BYTES = 4096
"""Providers cache no prefix below 1,024 tokens, which are about so many bytes."""
_ABSENT_FROM_OLD_KEYS = ("tool_choice", "response_format", "stop", "reasoning_effort", "top_p")


class ChatRequest(Row):
    """One request for one answer, in OpenAI's words. What is None is not sent."""

    model: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    max_tokens: int
    temperature: float | None = None
    seed: int | None = None
    tool_choice: str | dict[str, Any] | None = None
    """`auto`, `none`, `required` or `{"type": "function", "function": {"name": …}}`."""
    response_format: dict[str, Any] | None = None
    """`{"type": "json_schema", "json_schema": {…}}` or `{"type": "json_object"}`."""
    stop: list[str] | None = None
    reasoning_effort: str | None = None
    top_p: float | None = None

    def answer_key(self, sample_index: int) -> str:
        """The content that decides an answer: model, parameters, messages, sample number. 64 hex digits.

        Address, key and pace of the endpoint are no part of it. A field that came later counts only where it is set:
        what was answered before it existed keeps its key.
        """
        content = {name: value for name, value in self if value is not None or name not in _ABSENT_FROM_OLD_KEYS}
        return fingerprint({"request": content, "sample": sample_index})


class Reply(NamedTuple):
    """A readable answer."""

    message: Message
    text: str
    finish_reason: str
    usage: Usage


def hidden_tokens(request: ChatRequest) -> int:
    """Tokens of input, at most, that a request's bytes say nothing of: what a provider adds for tools, and images.

    Sources: Anthropic's guide "Tool use", pricing (346 to 804 tokens of system prompt); OpenAI's guide "Images and
    vision" (48,169 tokens at most, for gpt-4o-mini in high detail).
    """
    parts = (part for message in request.messages for part in _parts(message))
    images = sum(isinstance(part, dict) and part.get("type") not in {"text", "refusal"} for part in parts)
    return (TOOL_TOKENS if request.tools else 0) + IMAGE_TOKENS * images


def _parts(message: Message) -> Sequence[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else ()


def with_instructions(messages: Sequence[Message], instructions: str | None) -> list[Message]:
    """The messages with guidance put before the first system prompt, or made the system prompt where there is none."""
    if not instructions:
        return list(messages)
    place = next((index for index, message in enumerate(messages) if message.get("role") in SYSTEM_ROLES), None)
    if place is None:
        return [{"role": "system", "content": instructions}, *messages]
    system = messages[place]
    return [
        *messages[:place],
        {**system, "content": _prepend(instructions, system.get("content"))},
        *messages[place + 1 :],
    ]


def schema_format(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    """The `response_format` that makes an answer follow a JSON schema."""
    if schema is None:
        return None
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def leading_system(messages: Sequence[Message]) -> list[Message]:
    """The system messages that a conversation begins with."""
    return list(takewhile(lambda message: message.get("role") in SYSTEM_ROLES, messages))


def shared_prefix(request: ChatRequest) -> str | None:
    """Names the system prompt and the tools, 32 hex digits; None where they are too short for any provider's cache.

    Two requests of one name that follow each other gain from `cache_prefix`.
    """
    prefix = orjson.dumps([leading_system(request.messages), request.tools])
    return hashlib.sha256(prefix).hexdigest()[:32] if len(prefix) >= SHORTEST_CACHED_BYTES else None


class SharedPrefixes:
    """The long beginnings that requests have had so far."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def repeats(self, request: ChatRequest) -> bool:
        """Whether an earlier request began as this one does: the first one alone gains nothing from a cache."""
        prefix = shared_prefix(request)
        is_known = prefix in self._seen
        if prefix is not None:
            self._seen.add(prefix)
        return is_known


def _prepend(instructions: str, content: Any) -> Any:
    if isinstance(content, list):
        return [{"type": "text", "text": f"{instructions}\n\n"}, *content]
    return f"{instructions}\n\n{content}" if content else instructions
