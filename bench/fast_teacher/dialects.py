"""What the fake teacher understands and says: OpenAI's Chat Completions and Anthropic's Messages.

Bodies are put together from bytes: writing JSON anew for each reply would cost more than the rest of it.
"""

import hashlib
import re
from typing import Any, NamedTuple

import orjson

MARK = re.compile(r"#\d+")
PROMPT_OVERHEAD_TOKENS = 7
CHARACTERS_A_TOKEN = 4
_FILLER = "the answer goes on in plain words for as long as was asked, and says nothing else. " * 400


class Asked(NamedTuple):
    """What matters of a request."""

    mark: str
    """The first id (#0042) in the last user message; without one, ~ and a hash of that message."""
    model: str
    prompt_tokens: int
    """A guess from the length, as providers make one before they count."""
    max_tokens: int
    """0 where it was not said."""


class Answer(NamedTuple):
    """What a 200 holds."""

    asked: Asked
    text: str
    tokens: int
    is_whole: bool


def read_request(body: bytes) -> Asked | None:
    """None for what is no request: not JSON, or without a user's message."""
    try:
        request: dict[str, Any] = orjson.loads(body)
        messages: list[dict[str, Any]] = request["messages"]
        texts = [_text(message["content"]) for message in messages]
        last = next(
            text for message, text in zip(messages[::-1], texts[::-1], strict=True) if message["role"] == "user"
        )
        limit = request.get("max_tokens") or request.get("max_completion_tokens") or 0
        system = _text(request.get("system") or "")
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None
    found = MARK.search(last)
    mark = found.group() if found else "~" + hashlib.blake2b(last.encode(), digest_size=6).hexdigest()
    tokens = PROMPT_OVERHEAD_TOKENS + (len(system) + sum(map(len, texts))) // CHARACTERS_A_TOKEN
    return Asked(mark, str(request.get("model")), tokens, int(limit))


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "" if content is None else "".join(part.get("text") or "" for part in content)


def answer(asked: Asked, wanted_tokens: int) -> Answer:
    """The answer to a mark, cut where the request's `max_tokens` ends."""
    tokens = min(wanted_tokens, asked.max_tokens or wanted_tokens)
    return Answer(asked, answer_text(asked.mark, tokens), tokens, tokens == wanted_tokens)


def answer_text(mark: str, tokens: int) -> str:
    """The one right text for a mark at that length."""
    return f"answer to {mark}: {_FILLER}"[: tokens * CHARACTERS_A_TOKEN]


def is_answer_to(text: str, mark: str) -> bool:
    """Whether a text is a whole answer to that mark and to no other, of any length."""
    start = f"answer to {mark}: "
    return len(text) > len(start) and text.startswith(start) and f"{start}{_FILLER}".startswith(text)


class OpenAI:
    """Chat Completions (API reference: "Create chat completion")."""

    path = b"/v1/chat/completions"

    def reply(self, given: Answer, number: int) -> bytes:
        asked = given.asked
        return (
            f'{{"id":"chatcmpl-{number}","object":"chat.completion","created":1700000000,'
            f'"model":{orjson.dumps(asked.model).decode()},"choices":[{{"index":0,"message":{{"role":"assistant",'
            f'"content":"{given.text}","refusal":null}},"logprobs":null,'
            f'"finish_reason":"{"stop" if given.is_whole else "length"}"}}],"usage":{{'
            f'"prompt_tokens":{asked.prompt_tokens},"completion_tokens":{given.tokens},'
            f'"total_tokens":{asked.prompt_tokens + given.tokens}}}}}'
        ).encode()

    def without_choices(self, given: Answer) -> bytes:
        usage = {"prompt_tokens": given.asked.prompt_tokens, "completion_tokens": given.tokens}
        return orjson.dumps({"object": "chat.completion", "choices": [], "usage": usage})

    def without_usage(self, reply: bytes) -> bytes:
        return reply[: reply.index(b',"usage":')] + b"}"

    def error(self, status: int) -> bytes:
        kind = "rate_limit_exceeded" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
        return orjson.dumps({"error": {"message": f"fake {kind}", "type": kind, "code": kind, "param": None}})


class Anthropic:
    """Messages (API reference: "Create a Message")."""

    path = b"/v1/messages"

    def reply(self, given: Answer, number: int) -> bytes:
        asked = given.asked
        return (
            f'{{"id":"msg_{number}","type":"message","role":"assistant","model":{orjson.dumps(asked.model).decode()},'
            f'"content":[{{"type":"text","text":"{given.text}"}}],'
            f'"stop_reason":"{"end_turn" if given.is_whole else "max_tokens"}","stop_sequence":null,"usage":{{'
            f'"input_tokens":{asked.prompt_tokens},"output_tokens":{given.tokens}}}}}'
        ).encode()

    def without_choices(self, given: Answer) -> bytes:
        usage = {"input_tokens": given.asked.prompt_tokens, "output_tokens": given.tokens}
        return orjson.dumps({"type": "message", "role": "assistant", "usage": usage})

    def without_usage(self, reply: bytes) -> bytes:
        return reply[: reply.index(b',"usage":')] + b"}"

    def error(self, status: int) -> bytes:
        kinds = {429: "rate_limit_error", 529: "overloaded_error"}
        kind = kinds.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": f"fake {kind}"}})


Dialect = OpenAI | Anthropic
DIALECTS: dict[bytes, Dialect] = {dialect.path: dialect for dialect in (OpenAI(), Anthropic())}
