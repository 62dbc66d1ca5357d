"""Reader of ShareGPT conversations: `{"id"?, "system"?, "conversations": [{"from": "human" | "gpt" | "system", "value"}]}`.

A last answer is the reference. Calls of functions have no common form there, and are refused.
"""

from typing import Any

from potstill.curation.readers.raw import RawPrompt, conversation, parsed, part_answer, row_id_of, workload_of

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def read(record: dict[str, Any]) -> RawPrompt | None:
    """The prompt of one conversation."""
    turns = parsed(record.get("conversations"))
    if turns is None:
        return None
    if not isinstance(turns, list) or not turns:
        raise ValueError("conversations: not a list with at least one turn")
    messages, answer = part_answer(conversation(record.get("system"), map(_turn, range(len(turns)), turns)))
    return RawPrompt(messages, workload=workload_of(record), row_id=row_id_of(record, "id"), reference=answer or None)


def _turn(index: int, turn: Any) -> tuple[str, Any]:
    if not isinstance(turn, dict):
        raise ValueError(f"conversations[{index}]: not an object")
    speaker = turn.get("from", turn.get("role"))
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise ValueError(f"conversations[{index}].from: {speaker!r} is not one of {', '.join(sorted(ROLES))}")
    return ROLES[speaker], turn.get("value", turn.get("content"))
