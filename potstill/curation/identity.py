"""What makes two prompts the same prompt."""

import unicodedata
from typing import Any

from potstill.fingerprint import fingerprint
from potstill.records import Message


def prompt_id(messages: list[Message], tools: list[dict[str, Any]] | None) -> str:
    """32 hex digits over the messages and tools, redacted already; outer white space, line ends and Unicode form do not count."""
    return fingerprint({"messages": [_normalise(message) for message in messages], "tools": tools})[:32]


def _normalise(value: Any) -> Any:
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).replace("\r\n", "\n").strip()
    if isinstance(value, list):
        return [_normalise(item) for item in value]
    if isinstance(value, dict):
        return {name: _normalise(item) for name, item in value.items()}
    return value
