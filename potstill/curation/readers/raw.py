"""What every reader yields, and what several of them need to look at a record."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

from potstill.messages import as_text
from potstill.records import Message

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
WORKLOAD_FIELDS = ("workload_id", "workload", "task")


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
    """What is odd about the line, though it can be used: empty_response, truncated, refusal, no_workload_id."""
    answer: str | None = None
    """What a log shows as the answer, where nothing is odd about it."""


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


def part_answer(messages: list[Message]) -> tuple[list[Message], str | None]:
    """The prompt up to a last answer of the assistant's, and that answer's text; None where there is none."""
    if messages[-1]["role"] != "assistant":
        return messages, None
    answer = messages[-1].get("content")
    return check_messages(messages[:-1]), answer if isinstance(answer, str) else None


def conversation(system: Any, turns: Iterable[tuple[str, Any]]) -> list[Message]:
    """Checked messages of these (role, text), behind a system message where there is one."""
    said = [("system", system)] if isinstance(system, str) and system.strip() else []
    return check_messages([{"role": role, "content": text} for role, text in (*said, *turns)])


def text_of(record: dict[str, Any], *names: str) -> str | None:
    """The first of these fields that holds anything, as text; what is no text is given as JSON."""
    for name in names:
        value = record.get(name)
        if value is not None and value != "":
            return value if isinstance(value, str) else orjson.dumps(value).decode()
    return None


def row_id_of(record: dict[str, Any], *names: str) -> str | None:
    """The caller's own id, as text."""
    return next((str(record[name]) for name in names if record.get(name) is not None), None)


def workload_of(record: dict[str, Any]) -> str:
    """The workload that a record names, "" where it names none."""
    return str(next((record[name] for name in WORKLOAD_FIELDS if record.get(name)), ""))


def parsed(value: Any) -> Any:
    """The value behind JSON text, as tables hold lists and objects; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in {"[", "{"}:
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value
