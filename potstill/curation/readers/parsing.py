"""From the bytes of one line to a record, repaired where that changes nothing of what was meant.

orjson reads what is sound. What it refuses is read once more by the standard library after: decoding Windows-1252 where the
bytes are no UTF-8, taking raw control characters (NUL among them) as they stand in a string, NaN and Infinity as null, and
half of a surrogate pair as U+FFFD, which no UTF-8 text can hold.
"""

import json
import re
from typing import Any, NamedTuple

import orjson

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_DEPTH = 100
"""Objects and lists within each other; no request is deeper, and what follows walks them by recursion."""
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_CONTROLS = re.compile(r"[\x00-\x1f]")
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


class Record(NamedTuple):
    value: Any
    repairs: tuple[str, ...] = ()
    """What had to be mended: not_utf8, control_character, not_a_number, lone_surrogate."""


def strip_line(line: bytes) -> bytes:
    """The line without the space around it and without a byte order mark."""
    return line.strip().removeprefix(BYTE_ORDER_MARK)


def parse_line(text: bytes) -> Record:
    """The record of one stripped line. Errors: `ValueError` with the reason where it is no JSON, or nested too deeply."""
    try:
        record = Record(orjson.loads(text))
    except orjson.JSONDecodeError as error:
        record = _repaired(text, error)
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _is_deep(record.value, MAX_DEPTH):
        raise ValueError(f"nested too deeply: more than {MAX_DEPTH} levels")
    return record


def _repaired(text: bytes, refused: orjson.JSONDecodeError) -> Record:
    decoded, repairs = _decode(text)
    as_numbers: list[str] = []

    def nothing(name: str) -> None:
        as_numbers.append(name)

    try:
        value = json.loads(decoded, strict=False, parse_constant=nothing, parse_int=_integer)
    except (ValueError, RecursionError):
        if repairs:
            raise ValueError("not UTF-8 text, and no JSON in Windows-1252") from None
        raise ValueError(f"not valid JSON: {refused.msg} at column {refused.colno}") from None
    if _CONTROLS.search(decoded):
        repairs.append("control_character")
    if as_numbers:
        repairs.append("not_a_number")
    mended = _whole(value)
    if mended != value:
        repairs.append("lone_surrogate")
    return Record(mended, tuple(repairs))


def _integer(digits: str) -> int | float:
    """As orjson has it: what 64 bits do not hold is a float."""
    return int(digits) if len(digits) < 19 else float(digits)


def _decode(text: bytes) -> tuple[str, list[str]]:
    try:
        return text.decode("utf-8"), []
    except UnicodeDecodeError:
        if text.startswith(_UTF16):
            raise ValueError("not UTF-8 text but UTF-16: convert the file") from None
        return text.decode("cp1252", errors="replace"), ["not_utf8"]


def _whole(value: Any) -> Any:
    """The same with every half of a surrogate pair as U+FFFD."""
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(name): _whole(item) for name, item in value.items()}
    return value


def _is_deep(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_is_deep(item, levels - 1) for item in inner)
