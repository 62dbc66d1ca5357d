"""Reader of plain chat JSONL: `{"id"?, "messages", "tools"?, "reference"?}`.

A last message of the assistant's is the answer, not a part of the prompt; it is the reference where none is given.
"""

from typing import Any

import orjson

from potstill.curation.readers.raw import RawPrompt, check_messages, check_tools


def read(record: dict[str, Any]) -> RawPrompt | None:
    """The prompt of one chat line."""
    if "messages" not in record:
        return None
    messages = check_messages(record["messages"])
    reference = record.get("reference")
    if messages[-1]["role"] == "assistant":
        answer = messages[-1].get("content")
        messages = check_messages(messages[:-1])
        reference = answer if reference is None and isinstance(answer, str) else reference
    if reference is not None and not isinstance(reference, str):
        reference = orjson.dumps(reference).decode()
    return RawPrompt(
        messages=messages,
        tools=check_tools(record.get("tools")),
        workload=str(record.get("workload_id") or record.get("task") or ""),
        row_id=None if record.get("id") is None else str(record["id"]),
        reference=reference or None,
    )
