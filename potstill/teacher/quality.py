"""Which answers must not be trained on, and why."""

from collections.abc import Sequence
from typing import Any

import orjson

from potstill.answer_schema import validator_of
from potstill.llm.messages import Reply
from potstill.recipe import Task
from potstill.records import Message
from potstill.refusals import is_refusal
from potstill.teacher.choosing import parsed_json

VERSION = 5
TRUNCATED = "truncated"
CUT_SHORT = frozenset({"length", "max_tokens", "model_length"})
FINISHED = frozenset(
    {"stop", "tool_calls", "function_call", "unknown", "end_turn", "stop_sequence", "tool_use"}
    | {"eos", "eos_token", "endoftext", "complete"}
)
"""Reasons of an answer that came to its end. Beside OpenAI's: `unknown`, where the server gives none, and what Together,
TGI, Cohere and gateways to other protocols say. Any other, such as `error` or `abort`, may have cut it in mid-sentence."""


def quarantine_reason(
    reply: Reply, task: Task | None, schema: dict[str, Any] | None = None, asked: Sequence[Message] = ()
) -> str | None:
    """Why an answer to these messages is kept from training; None where it may be used.

    Without a task and a schema it has to be complete, and no refusal.
    """
    if incomplete := _incomplete(reply):
        return incomplete
    if not reply.text.strip():
        if not reply.message.get("tool_calls"):
            return "empty"
        return None if task is None else "tool calls in place of an answer"
    is_label = task is not None and reply.text.strip() in task.labels
    if not is_label and is_refusal(reply.text, asked):
        return f"refusal: {reply.text.strip()[:40]}"
    wrong = None if schema is None else _against_schema(reply.text, schema)
    return wrong or (None if task is None else _against_task(reply.text, task))


def _incomplete(reply: Reply) -> str | None:
    if reply.message.get("refusal"):
        return "refusal"
    reason = reply.finish_reason.lower()
    if reason == "content_filter":
        return "refused by a content filter"
    if reason in CUT_SHORT:
        return TRUNCATED
    return None if reason in FINISHED else f"unfinished: {reply.finish_reason[:40]}"


def _against_task(text: str, task: Task) -> str | None:
    if task.kind == "classification":
        return None if text.strip() in task.labels else f"not a label: {text.strip()[:40]}"
    return None if isinstance(parsed_json(text), dict) else "not a JSON object"


def _against_schema(text: str, schema: dict[str, Any]) -> str | None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return "not JSON"
    try:
        error = next(validator_of(orjson.dumps(schema)).iter_errors(value), None)
    except RecursionError:
        return "not as the schema says: nested too deeply"
    if error is None:
        return None
    return f"not as the schema says: {error.json_path}: {error.message[:80]}"
