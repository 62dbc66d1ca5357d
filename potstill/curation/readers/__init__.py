"""Readers of production prompts: one file a format, each record recognised by its own content.

A reader is a function `(record) → RawPrompt | None`: None where the record is not of its format. It raises `ValueError`
with the reason where the record is of its format but cannot be used. docs/readers.md shows how to add one.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from potstill.curation.readers import (
    alpaca,
    chat,
    litellm,
    openai_batch,
    openai_log,
    plain,
    preference,
    sharegpt,
    stored_completion,
)
from potstill.curation.readers.parsing import MAX_DEPTH, parse_line, strip_line
from potstill.curation.readers.raw import RawPrompt

__all__ = ["MAX_DEPTH", "READERS", "Line", "RawPrompt", "is_blank", "read_line", "read_lines", "recognise"]

READERS = (
    litellm.read,
    stored_completion.read,
    openai_batch.read,
    preference.read,
    openai_log.read,
    sharegpt.read,
    chat.read,
    alpaca.read,
    plain.read,
)
"""The more particular first: a row of LiteLLM's has messages too, as a chat line has."""
LONGEST_LINE_BYTES = 64 * 1024 * 1024
"""A file without line ends would be read into memory whole."""


class Line(NamedTuple):
    """One line or row of an input: a prompt, or the reason why there is none."""

    number: int
    """1-based."""
    text: bytes
    prompt: RawPrompt | None
    reason: str | None
    repairs: tuple[str, ...] = ()
    """What was mended to read it."""


def read_lines(file: BinaryIO) -> Iterator[Line]:
    """Yield every line that is not blank, in order; a bad one carries its reason and stops nothing.

    Nor does a file that ends in the middle, as a compressed one that was cut off: the last line then says so.
    """
    number = 0
    try:
        for number, line in enumerate(_bounded(file), start=1):
            if len(line) > LONGEST_LINE_BYTES:
                yield Line(number, line[:4096], None, f"longer than {LONGEST_LINE_BYTES:,} bytes")
            elif not is_blank(line):
                yield read_line(number, line)
    except (EOFError, OSError) as error:
        yield Line(number + 1, b"", None, f"the file cannot be read further: {error}")


def is_blank(line: bytes) -> bool:
    """Whether a line holds nothing to read."""
    return not strip_line(line)


def read_line(number: int, line: bytes) -> Line:
    """One line, recognised by its content."""
    text = strip_line(line)
    try:
        record = parse_line(text)
        return Line(number, text, recognise(record.value), None, record.repairs)
    except ValueError as error:
        return Line(number, text, None, str(error))


def recognise(record: Any) -> RawPrompt:
    """The prompt of one record. Errors: `ValueError` where it is of no known form, or cannot be used."""
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}, not an object")
    for read in READERS:
        if (prompt := read(record)) is not None:
            return prompt
    raise ValueError(f"of no known form, by its fields: {', '.join(sorted(map(str, record))[:6]) or 'none'}")


def _bounded(file: BinaryIO) -> Iterator[bytes]:
    """The lines; of one that is too long its beginning, so that it is refused and not held in memory."""
    is_rest = False
    while piece := file.readline(LONGEST_LINE_BYTES + 1):
        if not is_rest:
            yield piece
        is_rest = not piece.endswith(b"\n")
