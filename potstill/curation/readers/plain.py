"""Reader of single prompts: `{"id"?, "prompt": text or messages, "system"?, "completion"?, "reference"?}`.

`completion`, as in OpenAI's older fine-tuning files and in TRL's data sets, is the reference.
"""

from typing import Any

from potstill.curation.readers.raw import (
    RawPrompt,
    check_messages,
    check_tools,
    conversation,
    parsed,
    row_id_of,
    text_of,
    workload_of,
)


def read(record: dict[str, Any]) -> RawPrompt | None:
    """The prompt of one line."""
    prompt = record.get("prompt")
    if prompt is None:
        return None
    said = parsed(prompt)
    if isinstance(said, list) and all(isinstance(message, dict) for message in said):
        messages = check_messages(said)
    elif isinstance(prompt, str) and prompt.strip():
        messages = conversation(record.get("system"), [("user", prompt)])
    else:
        raise ValueError("prompt: neither text nor a list of messages")
    return RawPrompt(
        messages=messages,
        tools=check_tools(parsed(record.get("tools"))),
        workload=workload_of(record),
        row_id=row_id_of(record, "id"),
        reference=text_of(record, "reference") or _completion(parsed(record.get("completion"))),
    )


def _completion(value: Any) -> str | None:
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    return value if isinstance(value, str) and value else None
