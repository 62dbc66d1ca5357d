"""What a body holds: prompts inline, or the address of a file of them; and which of its lines can be used."""

import io
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import orjson

from potstill.curation.readers import MAX_DEPTH, Line, is_blank, read_line
from potstill.errors import DataError

LONGEST_LINE_BYTES = 4 * 1024 * 1024
MOST_REASONS = 100
"""Told in one answer; the others are counted."""
REASON_CHARACTERS = 300
JSON_TYPE = "application/json"
LINES_TYPES = ("application/x-ndjson", "application/jsonl")


class Inline(NamedTuple):
    lines: Iterable[bytes]


class Reference(NamedTuple):
    uri: str


def read_body(content_type: str, body: bytes) -> Inline | Reference:
    """What a signed body holds. Errors: `DataError` for what is none of the three forms."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind in LINES_TYPES:
        return Inline(io.BytesIO(body))
    if kind != JSON_TYPE:
        raise DataError(f"content-type {kind[:80] or 'missing'!r}: send {LINES_TYPES[0]} or {JSON_TYPE}")
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise DataError(f"the body is no JSON: {error.msg} at column {error.colno}") from None
    if isinstance(content, dict) and isinstance(content.get("data"), dict):  # the specification's own envelope
        content = content["data"]
    if not isinstance(content, dict) or len(content.keys() & {"prompts", "uri"}) != 1:
        raise DataError('the body is neither {"prompts": [...]} nor {"uri": "..."}, nor either of them under "data"')
    if isinstance(uri := content.get("uri"), str):
        return Reference(uri)
    if isinstance(prompts := content.get("prompts"), list):
        return Inline([_line(prompt) for prompt in prompts])
    raise DataError("prompts is a list of prompts, uri a text")


def read_lines(file: BinaryIO, max_bytes: int) -> Iterator[bytes]:
    """The lines of a file as they come; a line that is too long comes cut, so that it is refused, and not held in memory.

    Errors: `DataError` once more than `max_bytes` were read.
    """
    size = 0
    is_rest = False
    while piece := file.readline(LONGEST_LINE_BYTES + 1):
        size += len(piece)
        if size > max_bytes:
            raise DataError(f"the file is longer than the {max_bytes:,} bytes that are copied at most: split it")
        if not is_rest:
            yield piece
        is_rest = not piece.endswith(b"\n")


class Sieve:
    """Lets through the lines that can be used, and remembers why the others cannot.

    Args:
        workload: what the recipe keeps, where it keeps one workload only: another line would be left out later, unseen.
    """

    def __init__(self, workload: str | None = None) -> None:
        self._workload = workload
        self.num_rejected = 0
        self.errors: list[dict[str, Any]] = []

    def usable(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Each line that a reader takes, without the space around it; blank ones are neither taken nor counted."""
        for number, line in enumerate(lines, start=1):
            if len(line) > LONGEST_LINE_BYTES:
                self._reject(number, f"longer than {LONGEST_LINE_BYTES:,} bytes")
            elif not is_blank(line):
                found = read_line(number, line)
                reason = found.reason or self._strange_workload(found)
                if reason is None:
                    yield found.text
                else:
                    self._reject(number, reason)

    def _strange_workload(self, line: Line) -> str | None:
        given = line.prompt.workload if line.prompt is not None else ""
        if self._workload in {None, given}:
            return None
        return f"workload_id is {given!r}: this recipe keeps {self._workload!r} only"

    def _reject(self, number: int, reason: str) -> None:
        self.num_rejected += 1
        if len(self.errors) < MOST_REASONS:
            self.errors.append({"line": number, "reason": reason[:REASON_CHARACTERS]})


def _line(prompt: Any) -> bytes:
    try:
        return orjson.dumps(prompt)
    except orjson.JSONEncodeError:  # nested deeper than it writes: a line that the readers refuse for that
        return b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1)
