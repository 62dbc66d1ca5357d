"""Readers of production prompts: one file a format, each line recognised by its own content.

A reader is a function `(record) → RawPrompt | None`: None where the record is not of its format. It raises `ValueError`
with the reason where the record is of its format but cannot be used.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import orjson

from potstill.curation.readers import chat, openai_log
from potstill.curation.readers.raw import RawPrompt

READERS = (openai_log.read, chat.read)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_DEPTH = 100
"""Objects and lists within each other; no request is deeper, and what follows walks them by recursion."""


class Line(NamedTuple):
    """One line of an input: a prompt, or the reason why there is none."""

    number: int
    """1-based."""
    text: bytes
    prompt: RawPrompt | None
    reason: str | None


def read_lines(file: BinaryIO) -> Iterator[Line]:
    """Yield every line that is not blank, in order; a bad one carries its reason and stops nothing."""
    for number, line in enumerate(file, start=1):
        if not is_blank(line):
            yield read_line(number, line)


def is_blank(line: bytes) -> bool:
    """Whether a line holds nothing to read."""
    return not line.strip().removeprefix(BYTE_ORDER_MARK)


def read_line(number: int, line: bytes) -> Line:
    """One line, recognised by its content."""
    text = line.strip().removeprefix(BYTE_ORDER_MARK)
    try:
        return Line(number, text, _recognise(_parse(text)), None)
    except ValueError as error:
        return Line(number, text, None, str(error))


def _parse(text: bytes) -> Any:
    try:
        record = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        try:
            text.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("not UTF-8 text") from None
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _is_deep(record, MAX_DEPTH):
        raise ValueError(f"nested too deeply: more than {MAX_DEPTH} levels")
    return record


def _is_deep(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_is_deep(item, levels - 1) for item in inner)


def _recognise(record: Any) -> RawPrompt:
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}, not an object")
    for read in READERS:
        if (prompt := read(record)) is not None:
            return prompt
    raise ValueError(f"neither a request log line nor a chat line: fields {', '.join(sorted(record)[:6]) or 'none'}")
