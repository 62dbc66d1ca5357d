"""Conversations of several turns: which prompts they are, and what keeps them on one side of the split."""

from collections.abc import Iterator

from potstill.curation.readers import RawPrompt
from potstill.kinds import Turns
from potstill.records import Message

ASKED = frozenset({"user", "tool", "function"})


def prompts_of(raw: RawPrompt, turns: Turns) -> Iterator[RawPrompt]:
    """The prompts of one conversation, the last one last: that alone, or one before each answer of the assistant's.

    What the assistant said then is the reference where the conversation has one at its end: a log's is not.
    """
    if turns == "each":
        for number, index in enumerate(_answers(raw.messages), start=1):
            answer = raw.messages[index].get("content")
            yield RawPrompt(
                messages=raw.messages[:index],
                tools=raw.tools,
                workload=raw.workload,
                row_id=None if raw.row_id is None else f"{raw.row_id}#{number}",
                reference=answer if raw.reference is not None and isinstance(answer, str) and answer else None,
            )
    yield raw


def first_prompt(messages: list[Message]) -> list[Message]:
    """The conversation up to its first answer. All its later prompts begin with it, so that it names their group."""
    return messages[: next(_answers(messages), len(messages))]


def _answers(messages: list[Message]) -> Iterator[int]:
    """Where the assistant answers what was asked before; several messages in a row are one answer."""
    is_open = False
    for index, message in enumerate(messages):
        if message["role"] in ASKED:
            is_open = True
        elif message["role"] == "assistant" and is_open:
            is_open = False
            yield index
