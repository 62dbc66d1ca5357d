"""Which answers must not be trained on, and why."""

import orjson

from potstill.llm.messages import Reply
from potstill.recipe import Task

VERSION = 2


def quarantine_reason(reply: Reply, task: Task | None) -> str | None:
    """Why an answer is kept from training; None where it may be used. Without a task only its completeness is judged."""
    if reply.finish_reason in {"length", "content_filter"}:
        return {"length": "truncated", "content_filter": "refused by a content filter"}[reply.finish_reason]
    if reply.message.get("refusal"):
        return "refusal"
    if task is None:
        return None if reply.text.strip() or reply.message.get("tool_calls") else "empty"
    if not reply.text.strip():
        return "tool calls in place of an answer" if reply.message.get("tool_calls") else "empty"
    if task.kind == "classification":
        return None if reply.text.strip() in task.labels else f"not a label: {reply.text.strip()[:40]}"
    return None if _is_json_object(reply.text) else "not a JSON object"


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False
