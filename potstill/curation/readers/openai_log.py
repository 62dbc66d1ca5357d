"""Reader of OpenAI-style request logs: `{timestamp, workload_id, client_id, request{model, messages, tools?}, response?}`."""

from typing import Any

from potstill.curation.readers.raw import RawPrompt, check_messages, check_tools


def read(record: dict[str, Any]) -> RawPrompt | None:
    """The prompt of one logged request."""
    request = record.get("request")
    if request is None:
        return None
    if not isinstance(request, dict):
        raise ValueError(f"request: {type(request).__name__}, not an object")
    workload = record.get("workload_id")
    flags = [] if workload else ["no_workload_id"]
    failed, response_flags = _read_response(record.get("response"))
    return RawPrompt(
        messages=check_messages(request.get("messages")),
        tools=check_tools(request.get("tools")),
        workload=str(workload or ""),
        row_id=None if record.get("id") is None else str(record["id"]),
        failed_call=failed,
        flags=(*flags, *response_flags),
    )


def _read_response(response: Any) -> tuple[bool, list[str]]:
    if not isinstance(response, dict):
        return False, []
    if response.get("error"):
        return True, []
    choices = response.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    flags = []
    if not message.get("content") and not message.get("tool_calls"):
        flags.append("empty_response")
    if choice.get("finish_reason") == "length":
        flags.append("truncated")
    return False, flags
