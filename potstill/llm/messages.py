"""What goes to an endpoint and what comes back, in the terms of no provider in particular."""

from typing import Any, NamedTuple

from potstill.fingerprint import fingerprint
from potstill.records import Message, Row, Usage


class ChatRequest(Row):
    """One request for one answer."""

    model: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    max_tokens: int
    temperature: float | None = None
    seed: int | None = None

    def answer_key(self, sample_index: int) -> str:
        """The content that decides an answer: model, parameters, messages, sample number. 64 hex digits.

        Address, key and pace of the endpoint are no part of it.
        """
        return fingerprint({"request": self, "sample": sample_index})


class Reply(NamedTuple):
    """A readable answer."""

    message: Message
    text: str
    finish_reason: str
    usage: Usage
