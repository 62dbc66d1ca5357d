"""What a logged answer in OpenAI's form says about its request."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from potstill.records import Message
from potstill.refusals import is_refusal


class Response(NamedTuple):
    is_error: bool = False
    flags: tuple[str, ...] = ()
    answer: str | None = None
    """The text, where there is one and nothing is odd about it."""


def read_response(response: Any, asked: Sequence[Message]) -> Response:
    """Whether a call failed, and what is odd about its answer. Anything that is no answer says nothing."""
    if not isinstance(response, dict):
        return Response()
    if response.get("error"):
        return Response(is_error=True)
    choices = response.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    text = message.get("content")
    flags = []
    if not text and not message.get("tool_calls"):
        flags.append("empty_response")
    if choice.get("finish_reason") == "length":
        flags.append("truncated")
    if isinstance(text, str) and is_refusal(text, asked):
        flags.append("refusal")
    return Response(flags=tuple(flags), answer=text if isinstance(text, str) and text and not flags else None)
