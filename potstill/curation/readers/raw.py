"""What every reader yields, and the check of chat messages that all of them share."""

from typing import Any, NamedTuple

from potstill.messages import as_text
from potstill.records import Message

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


class RawPrompt(NamedTuple):
    """A prompt as it stands in its file, before redaction."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    workload: str = ""
    row_id: str | None = None
    reference: str | None = None
    failed_call: bool = False
    """The log shows an error in place of an answer."""
    flags: tuple[str, ...] = ()
    """What is odd about the line, though it can be used: empty_response, truncated, no_workload_id."""


def check_messages(value: Any) -> list[Message]:
    """The messages of one prompt. Errors: `ValueError` saying which message is not one, and why."""
    if not isinstance(value, list) or not value:
        raise ValueError("messages: not a list with at least one message")
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise ValueError(f"messages[{index}]: not an object")
        if not isinstance(message.get("role"), str) or message["role"] not in ROLES:
            raise ValueError(
                f"messages[{index}].role: {message.get('role')!r} is not one of {', '.join(sorted(ROLES))}"
            )
        if message.get("content") is None and not message.get("tool_calls"):
            raise ValueError(f"messages[{index}].content: neither text nor a list of text parts")
        try:
            as_text(message)
        except ValueError as error:
            raise ValueError(f"messages[{index}].content: {error}") from None
    if not any(message["role"] in {"user", "tool", "function"} for message in value):
        raise ValueError("messages: no user message in them")
    return value


def check_tools(value: Any) -> list[dict[str, Any]] | None:
    """The tools of one prompt, None where there are none. Errors: `ValueError` saying what is not one."""
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError(f"tools: {type(value).__name__}, not a list")
    for index, tool in enumerate(value):
        if not isinstance(tool, dict):
            raise ValueError(f"tools[{index}]: {type(tool).__name__}, not an object")
    return value or None
