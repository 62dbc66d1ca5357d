"""Reader of OpenAI's stored completions: a `chat.completion` object with `choices`, `metadata`, and its `messages`.

`GET /v1/chat/completions` lists them without their prompts; the messages of `GET /v1/chat/completions/{id}/messages`
stand under `messages` or `input`. The answer is a logged one, not a reference. Source: OpenAI's API reference, "Chat
Completions: list, get messages".
"""

from typing import Any

from potstill.curation.readers.raw import RawPrompt, check_messages, check_tools, row_id_of, workload_of
from potstill.curation.readers.responses import read_response

KEPT = ("role", "content", "name", "tool_calls", "tool_call_id")
"""Of a stored message, which has an id and more of its own."""


def read(record: dict[str, Any]) -> RawPrompt | None:
    """The prompt of one stored completion."""
    if record.get("object") != "chat.completion" or "choices" not in record:
        return None
    messages = record.get("messages", record.get("input"))
    if messages is None:
        raise ValueError(
            "messages: a stored completion without its prompt: put the messages of "
            "GET /v1/chat/completions/ID/messages under messages"
        )
    metadata = record.get("metadata")
    workload = workload_of(metadata) if isinstance(metadata, dict) else ""
    said = [{name: one[name] for name in KEPT if one.get(name) is not None} for one in check_messages(messages)]
    response = read_response(record, said)
    return RawPrompt(
        messages=said,
        tools=check_tools(record.get("tools")),
        workload=workload,
        row_id=row_id_of(record, "id"),
        failed_call=response.is_error,
        flags=(*([] if workload else ["no_workload_id"]), *response.flags),
        answer=response.answer,
    )
