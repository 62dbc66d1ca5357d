"""Reader of chat JSONL and OpenAI's fine-tuning JSONL: `{"id"?, "messages", "tools"?, "reference"?}`.

A last message of the assistant's is the answer, not a part of the prompt; it is the reference where none is given. The
`weight` that fine-tuning gives to a message is left out: no endpoint takes it.
"""

from typing import Any

from potstill.curation.readers.raw import (
    RawPrompt,
    check_messages,
    check_tools,
    parsed,
    part_answer,
    row_id_of,
    text_of,
    workload_of,
)


def read(record: dict[str, Any]) -> RawPrompt | None:
    """The prompt of one chat line."""
    if "messages" not in record:
        return None
    messages, answer = part_answer(_without_weights(check_messages(parsed(record["messages"]))))
    reference = text_of(record, "reference")
    return RawPrompt(
        messages=messages,
        tools=check_tools(parsed(record.get("tools"))),
        workload=workload_of(record),
        row_id=row_id_of(record, "id"),
        reference=reference if "reference" in record and record["reference"] is not None else answer or None,
    )


def _without_weights(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not any("weight" in message for message in messages):
        return messages
    return [{name: value for name, value in message.items() if name != "weight"} for message in messages]
