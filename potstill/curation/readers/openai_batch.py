"""Reader of OpenAI's batch input files: `{"custom_id", "method", "url", "body": {model, messages, tools?}}`."""

from typing import Any

from potstill.curation.readers.raw import RawPrompt, check_messages, check_tools, row_id_of


def read(record: dict[str, Any]) -> RawPrompt | None:
    """The prompt of one request of a batch."""
    body = record.get("body")
    if "custom_id" not in record or not isinstance(body, dict):
        return None
    if "messages" not in body:
        raise ValueError(f"body.messages: missing, as in a request to {record.get('url')}: chat completions are read")
    return RawPrompt(
        messages=check_messages(body["messages"]),
        tools=check_tools(body.get("tools")),
        row_id=row_id_of(record, "custom_id"),
    )
