"""Reader of LiteLLM's spend logs: rows of `LiteLLM_SpendLogs` with `request_id`, `call_type`, `messages`, `response`.

LiteLLM keeps prompts there only with `store_prompts_in_spend_logs: true`; in newer versions the request stands in
`proxy_server_request`. Objects may be JSON text, as an export of a table has them. The first of `request_tags` is the
workload. Source: LiteLLM's schema.prisma and its page on spend logs.
"""

from typing import Any

from potstill.curation.readers.raw import RawPrompt, check_messages, check_tools, parsed, row_id_of
from potstill.curation.readers.responses import read_response

CHAT_CALLS = frozenset({"completion", "acompletion"})


def read(record: dict[str, Any]) -> RawPrompt | None:
    """The prompt of one row."""
    if "call_type" not in record or "request_id" not in record:
        return None
    if record["call_type"] not in CHAT_CALLS:
        raise ValueError(f"call_type: {record['call_type']!r}: chat completions are read")
    request = parsed(record.get("proxy_server_request"))
    request = request if isinstance(request, dict) else {}
    messages = parsed(record.get("messages")) or request.get("messages")
    if not messages:
        raise ValueError(
            "messages: LiteLLM has not kept the prompt: set general_settings.store_prompts_in_spend_logs to true"
        )
    workload = _workload(parsed(record.get("request_tags")))
    messages = check_messages(messages)
    response = read_response(parsed(record.get("response")) or None, messages)
    return RawPrompt(
        messages=messages,
        tools=check_tools(request.get("tools")),
        workload=workload,
        row_id=row_id_of(record, "request_id"),
        failed_call=response.is_error or record.get("status") == "failure",
        flags=(*([] if workload else ["no_workload_id"]), *response.flags),
        answer=response.answer,
    )


def _workload(tags: Any) -> str:
    named = (
        [tag for tag in tags if isinstance(tag, str) and not tag.startswith("User-Agent:")]
        if isinstance(tags, list)
        else []
    )
    return named[0] if named else ""
