"""Prompts for benchmarks: each of about 110 tokens, each with an id of its own, the same in every run."""

from pathlib import Path

from bench.fast_teacher.dialects import CHARACTERS_A_TOKEN
from potstill.records import write_jsonl

PROMPT_TOKENS = 110
_WORDS = (
    *("parcel", "invoice", "refund", "account", "delivery", "address", "order", "warranty", "password", "meeting"),
    *("late", "broken", "missing", "twice", "wrong", "urgent", "again", "blue", "heavy", "small"),
    *("customer", "writes", "asks", "says", "wants", "needs", "waits", "calls", "returns", "pays"),
)


def prompt_text(number: int) -> str:
    """The prompt with that number; its id stands first."""
    words = [f"#{number:06d}"]
    length, state = len(words[0]), number * 2654435761 + 12345
    while length < PROMPT_TOKENS * CHARACTERS_A_TOKEN:
        state = (state * 1103515245 + 12345) % 2**31
        words.append(_WORDS[(state >> 8) % len(_WORDS)])
        length += len(words[-1]) + 1
    return " ".join(words)


def write_prompts(path: Path, count: int) -> None:
    """Chat JSONL of the first so many prompts."""
    write_jsonl(
        path,
        (
            {"id": f"#{number:06d}", "messages": [{"role": "user", "content": prompt_text(number)}]}
            for number in range(count)
        ),
    )
