"""What a logged answer in OpenAI's form says about its request."""

from typing import Any, NamedTuple


class Response(NamedTuple):
    is_error: bool = False
    flags: tuple[str, ...] = ()


def read_response(response: Any) -> Response:
    """Whether a call failed, and what is odd about its answer. Anything that is no answer says nothing."""
    if not isinstance(response, dict):
        return Response()
    if response.get("error"):
        return Response(is_error=True)
    choices = response.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    flags = []
    if not message.get("content") and not message.get("tool_calls"):
        flags.append("empty_response")
    if choice.get("finish_reason") == "length":
        flags.append("truncated")
    return Response(flags=tuple(flags))
