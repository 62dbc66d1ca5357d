"""Endpoints that speak OpenAI's Chat Completions: vLLM, OpenRouter, LiteLLM, Potstill's own server and many more.

Source: OpenAI API reference, "Create chat completion" and "Error codes".
"""

import math
from typing import Any

from potstill.llm.messages import ChatRequest, Reply
from potstill.llm.providers.base import Failure
from potstill.records import Usage

BILLING_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})


class OpenAICompatible:
    name = "openai_compatible"
    default_base_url: str | None = None
    default_key_env: str | None = None
    max_tokens_field = "max_tokens"

    def path(self) -> str:
        return "/chat/completions"

    def headers(self, key: str | None) -> dict[str, str]:
        return {"authorization": f"Bearer {key}"} if key else {}

    def body(self, request: ChatRequest) -> dict[str, Any]:
        optional = {"tools": request.tools, "temperature": request.temperature, "seed": request.seed}
        return {
            "model": request.model,
            "messages": request.messages,
            self.max_tokens_field: request.max_tokens,
            **{name: value for name, value in optional.items() if value is not None},
        }

    def read_reply(self, body: Any) -> Reply | Failure:
        usage = _read_usage(body)
        try:
            choice = body["choices"][0]
            message, finish_reason = choice["message"], choice.get("finish_reason") or "unknown"
            text = message.get("content") or ""
            is_answer = isinstance(text, str) and isinstance(finish_reason, str)
        except (KeyError, IndexError, TypeError, AttributeError):
            return Failure("transient", "malformed reply: no choices[0].message in it", usage)
        if not is_answer or message.get("role", "assistant") != "assistant":
            return Failure("transient", "malformed reply: choices[0].message is not an assistant's", usage)
        says_something = text.strip() or message.get("tool_calls") or message.get("refusal")
        if not says_something and finish_reason != "length":  # cut before its first word, it would be cut again
            return Failure("transient", f"empty answer (finish_reason {finish_reason})", usage)
        if usage is None:
            return Failure("transient", "malformed reply: no usage in it", None)
        return Reply({"role": "assistant", **message}, text, finish_reason, usage)

    def read_error(self, status: int, body: Any, retry_after: str | None) -> Failure:  # noqa: PLR0911 - one return a cause
        error = body.get("error") if isinstance(body, dict) else None
        error = error if isinstance(error, dict) else {"message": error}
        said = str(error.get("message") or "").strip()[:200]
        codes = {str(error.get("code")), str(error.get("type"))}
        message = f"HTTP {status}" + (f": {said}" if said else "")
        if 300 <= status < 400:
            return Failure("run", f"{message}: the address redirects, and redirects are never followed: check base_url")
        if status == 401:
            return Failure("authorisation", f"{message}: the key is not accepted")
        if status in {402, 403} or codes & BILLING_CODES:
            return Failure("authorisation", f"{message}: the account may not use this (permission, billing or quota)")
        if status in {404, 405}:
            return Failure("run", f"{message}: check the model's name and base_url")
        if status == 429:
            return Failure("rate_limit", message, retry_after_seconds=_read_seconds(retry_after))
        if status in {408, 409} or status >= 500:
            return Failure("transient", message, retry_after_seconds=_read_seconds(retry_after))
        return Failure("request", message)


def _read_usage(body: Any) -> Usage | None:
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details") or {}
    reasoning = usage.get("completion_tokens_details") or {}
    try:
        read = Usage(
            input=usage["prompt_tokens"],
            cached_input=details.get("cached_tokens") or 0,
            output=usage["completion_tokens"],
            reasoning=reasoning.get("reasoning_tokens") or 0,
        )
    except (KeyError, AttributeError, ValueError):
        return None
    return read.model_copy(update={"cached_input": min(read.cached_input, read.input)})


def _read_seconds(value: str | None) -> float | None:
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
