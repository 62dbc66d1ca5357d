"""Reader of OpenAI-style request logs: `{timestamp, workload_id, client_id, request{model, messages, tools?}, response?}`."""

from typing import Any

from potstill.curation.readers.raw import RawPrompt, check_messages, check_tools, row_id_of, workload_of
from potstill.curation.readers.responses import read_response


def read(record: dict[str, Any]) -> RawPrompt | None:
    """The prompt of one logged request."""
    request = record.get("request")
    if request is None:
        return None
    if not isinstance(request, dict):
        raise ValueError(f"request: {type(request).__name__}, not an object")
    workload = workload_of(record)
    messages = check_messages(request.get("messages"))
    response = read_response(record.get("response"), messages)
    return RawPrompt(
        messages=messages,
        tools=check_tools(request.get("tools")),
        workload=workload,
        row_id=row_id_of(record, "id"),
        failed_call=response.is_error,
        flags=(*([] if workload else ["no_workload_id"]), *response.flags),
        answer=response.answer,
    )
