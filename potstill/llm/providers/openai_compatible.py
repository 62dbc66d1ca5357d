"""Endpoints that speak OpenAI's Chat Completions: vLLM, OpenRouter, Azure, Gemini, LiteLLM, Potstill's own server and more.

Source: OpenAI API reference, "Create chat completion" and "Rate limits"; Azure OpenAI reference, "Authentication"; bills of
Gemini and xAI as vercel/ai#12425 and UKGovernmentBEIS/inspect_ai#5528 quote them.
"""

from collections.abc import Mapping
from typing import Any

from potstill.llm.messages import ChatRequest, Reply
from potstill.llm.providers.base import Failure, Limit, LimitName
from potstill.llm.providers.errors import read_error
from potstill.llm.providers.headers import make_limit, read_duration
from potstill.outbound import is_azure
from potstill.records import Usage

OPTIONAL = ("tools", "tool_choice", "response_format", "temperature", "top_p", "stop", "seed", "reasoning_effort")
"""Fields that have the same name here and there, and are sent only where they are set."""
LIMITS: tuple[LimitName, ...] = ("requests", "tokens")


class OpenAICompatible:
    name = "openai_compatible"
    default_base_url: str | None = None
    default_key_env: str | None = None
    max_tokens_field = "max_tokens"

    def path(self) -> str:
        return "/chat/completions"

    def headers(self, key: str | None, base_url: str = "") -> dict[str, str]:
        if not key:
            return {}
        return {"api-key": key} if is_azure(base_url) else {"authorization": f"Bearer {key}"}

    def body(self, request: ChatRequest, *, cache_prefix: bool = False) -> dict[str, Any]:  # noqa: ARG002 - servers of this kind cache by themselves
        return {
            "model": request.model,
            "messages": request.messages,
            self.max_tokens_field: request.max_tokens,
            **{name: value for name in OPTIONAL if (value := getattr(request, name)) is not None},
        }

    def read_reply(self, body: Any) -> Reply | Failure:
        usage = _read_usage(body)
        try:
            choice = body["choices"][0]
            message, finish_reason = choice["message"], choice.get("finish_reason") or "unknown"
            text = _text_of(message.get("content"))
            is_answer = isinstance(text, str) and isinstance(finish_reason, str)
        except (KeyError, IndexError, TypeError, AttributeError):
            return Failure("transient", "malformed reply: no choices[0].message in it", usage)
        if not is_answer or message.get("role", "assistant") != "assistant":
            return Failure("transient", "malformed reply: choices[0].message is not an assistant's", usage)
        says_something = text.strip() or message.get("tool_calls") or message.get("refusal")
        if not says_something and finish_reason not in {"length", "content_filter"}:  # these two would come again
            return Failure("transient", f"empty answer (finish_reason {finish_reason})", usage)
        if usage is None:
            return Failure("transient", "malformed reply: no usage in it", None)
        if isinstance(message.get("content"), list):
            message = {**message, "content": text}
        return Reply({"role": "assistant", **message}, text, finish_reason, usage)

    def read_error(self, status: int, body: Any, headers: Mapping[str, str]) -> Failure:
        return read_error(status, body, headers)

    def read_limits(self, headers: Mapping[str, str]) -> dict[LimitName, Limit]:
        found: dict[LimitName, Limit] = {}
        for name in LIMITS:
            size = headers.get(f"x-ratelimit-limit-{name}")
            if size is None:
                continue
            reset = read_duration(headers.get(f"x-ratelimit-reset-{name}"))
            if limit := make_limit(size, headers.get(f"x-ratelimit-remaining-{name}"), reset):
                found[name] = limit
        return found


def _text_of(content: Any) -> Any:
    """Mistral's reasoning models answer in parts: the text of those that are text, and not what they thought."""
    if not isinstance(content, list):
        return content or ""
    return "".join(part["text"] for part in content if part["type"] == "text")


def _read_usage(body: Any) -> Usage | None:
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details") or {}
    try:
        reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
        read = Usage(
            input=usage["prompt_tokens"],
            cached_input=details.get("cached_tokens") or 0,
            cache_write=details.get("cache_write_tokens") or 0,
            output=_billed_output(usage, reasoning),
            reasoning=reasoning,
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    return read.within_input()


def _billed_output(usage: dict[str, Any], reasoning: int) -> int:
    """With the reasoning, which Gemini and xAI bill and leave out of `completion_tokens`; the total has it there."""
    said = usage["completion_tokens"]
    output = max(said, (usage.get("total_tokens") or 0) - usage["prompt_tokens"])
    return output if reasoning <= output else said + reasoning
