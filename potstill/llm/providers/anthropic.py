"""Anthropic's Messages API. What OpenAI's words become there: `anthropic_body`; this file reads what comes back.

Sources: Anthropic API reference, "Create a Message", "Errors" and "Rate limits"; the types of its Python SDK 2.13.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from potstill.llm.messages import ChatRequest, Reply
from potstill.llm.providers.anthropic_body import write_body
from potstill.llm.providers.base import Failure, Limit, LimitName
from potstill.llm.providers.errors import read_error
from potstill.llm.providers.headers import make_limit, read_reset
from potstill.records import Message, Usage

API_VERSION = "2023-06-01"
FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""Anthropic's reasons in OpenAI's words; any other stays as it is."""
LIMITS: dict[LimitName, str] = {
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "input-tokens",
    "output_tokens": "output-tokens",
}


class Anthropic:
    name = "anthropic"
    default_base_url: str | None = "https://api.anthropic.com/v1"
    default_key_env: str | None = "ANTHROPIC_API_KEY"

    def path(self) -> str:
        return "/messages"

    def headers(self, key: str | None, base_url: str = "") -> dict[str, str]:  # noqa: ARG002 - one form for every host
        return {"anthropic-version": API_VERSION, **({"x-api-key": key} if key else {})}

    def body(self, request: ChatRequest, *, cache_prefix: bool = False) -> dict[str, Any]:
        return write_body(request, cache_prefix=cache_prefix)

    def read_reply(self, body: Any) -> Reply | Failure:
        """A refusal is an answer with `message.refusal` and finish_reason `content_filter`; thinking is left out."""
        usage = _read_usage(body)
        try:
            is_answer = body["type"] == "message" and body["role"] == "assistant"
            text, tool_calls = _read_content(body["content"])
            finish_reason = FINISH_REASONS.get(body["stop_reason"], body["stop_reason"])
        except (KeyError, TypeError, AttributeError):
            return Failure("transient", "malformed reply: no content or stop_reason in it", usage)
        if not is_answer or not isinstance(finish_reason, str):
            return Failure("transient", "malformed reply: it is no message of an assistant", usage)
        refusal = _read_refusal(body) if body["stop_reason"] == "refusal" else None
        if not (text.strip() or tool_calls or refusal or finish_reason == "length"):
            return Failure("transient", f"empty answer (finish_reason {finish_reason})", usage)
        if usage is None:
            return Failure("transient", "malformed reply: no usage in it", None)
        message: Message = {"role": "assistant", "content": text or (None if tool_calls or refusal else "")}
        if tool_calls:
            message["tool_calls"] = tool_calls
        if refusal:
            message["refusal"] = refusal
        return Reply(message, text, finish_reason, usage)

    def read_error(self, status: int, body: Any, headers: Mapping[str, str]) -> Failure:
        return read_error(status, body, headers)

    def read_limits(self, headers: Mapping[str, str]) -> dict[LimitName, Limit]:
        found: dict[LimitName, Limit] = {}
        for name, theirs in LIMITS.items():
            size = headers.get(f"anthropic-ratelimit-{theirs}-limit")
            if size is None:
                continue
            reset = read_reset(headers.get(f"anthropic-ratelimit-{theirs}-reset"), headers)
            if limit := make_limit(size, headers.get(f"anthropic-ratelimit-{theirs}-remaining"), reset):
                found[name] = limit
        return found


def _read_content(blocks: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """The text, and the tool calls in OpenAI's form."""
    texts: list[str] = []
    tool_calls: list[dict[str, Any]] = []
    for block in blocks:
        if block["type"] == "text":
            texts.append(block["text"])
        elif block["type"] == "tool_use":
            function = {"name": block["name"], "arguments": orjson.dumps(block["input"]).decode()}
            tool_calls.append({"id": block["id"], "type": "function", "function": function})
    return "".join(texts), tool_calls


def _read_refusal(body: dict[str, Any]) -> str:
    details = body.get("stop_details")
    found = details if isinstance(details, dict) else {}
    return str(found.get("explanation") or found.get("category") or "refused")


def _read_usage(body: Any) -> Usage | None:
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return None
    details = usage.get("output_tokens_details") or {}
    try:
        read, written = usage.get("cache_read_input_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
        return Usage(
            input=usage["input_tokens"] + read + written,
            cached_input=read,
            cache_write=written,
            output=usage["output_tokens"],
            reasoning=details.get("thinking_tokens") or 0,
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
