"""What a file is, by its first bytes, and the lines or rows in it: JSON lines, a JSON list, CSV, Parquet, Arrow, packed or not.

Everything is streamed but a JSON list, which is read whole. Whatever is wrong with a file ends as a line with its reason.
"""

import codecs
import csv
import io
from collections.abc import Iterable, Iterator
from itertools import count
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

import orjson

from potstill.curation.readers import LONGEST_LINE_BYTES, Line, read_lines, recognise
from potstill.curation.readers.parsing import strip_line
from potstill.curation.unpacking import GZIP, ZSTANDARD, Borrowed, Unpacked

PACKINGS = {b"\x1f\x8b": GZIP, b"\x28\xb5\x2f\xfd": ZSTANDARD}
PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff" * 4
BEGINNING_BYTES = 64 * 1024
"""How much of a file is looked at to tell what it is."""
LONGEST_LIST_BYTES = 2 * 1024**3
ROWS_AT_A_TIME = 1024
COLUMNS = frozenset({"messages", "prompt", "instruction", "conversations", "request", "request_id"})
"""One of them is in the header of a CSV file: what the readers know a row by."""

if TYPE_CHECKING:
    BinaryFile = io.BufferedReader[Any]

csv.field_size_limit(LONGEST_LINE_BYTES)


def read_file(file: BinaryIO) -> Iterator[Line]:
    """Every line or row of a file, whatever it is packed in. `file` stays open; it can be sought where it is Parquet.

    Errors: what reading `file` raises. Only what stands in it is told in lines: a disk or a store that fails is no bad line.
    """
    borrowed = Borrowed(file)
    for line in _read(io.BufferedReader(borrowed, BEGINNING_BYTES)):
        if borrowed.failure is not None:
            raise borrowed.failure
        yield line


def _read(file: "BinaryFile") -> Iterator[Line]:
    start = _beginning(file)
    packing = next((packing for mark, packing in PACKINGS.items() if start.startswith(mark)), None)
    if packing is not None:
        yield from _unpacked(Unpacked(file, packing))
    elif start.startswith(PARQUET):
        yield from _rows(_parquet(file))
    elif start.startswith((ARROW_FILE, ARROW_STREAM)):
        yield from _rows(_arrow(file, is_stream=start.startswith(ARROW_STREAM)))
    else:
        yield from _text(file, start)


def _unpacked(raw: io.RawIOBase) -> Iterator[Line]:
    file = io.BufferedReader(raw, BEGINNING_BYTES)
    try:
        start = _beginning(file)
    except (OSError, EOFError) as error:
        yield Line(1, b"", None, f"the file cannot be unpacked: {error}")
        return
    if start.startswith((PARQUET, ARROW_FILE, ARROW_STREAM)):
        yield Line(1, b"", None, "a table within a packed file: unpack it, tables are packed within themselves")
    else:
        yield from _text(file, start)


def _beginning(file: "BinaryFile") -> bytes:
    return file.peek(BEGINNING_BYTES)[:BEGINNING_BYTES]


def _text(file: "BinaryFile", start: bytes) -> Iterator[Line]:
    beginning = strip_line(start)
    if beginning.startswith(b"["):
        yield from _json_list(file)
    elif (dialect := _csv_dialect(start)) is not None:
        yield from _rows(_csv(file, dialect))
    else:
        yield from read_lines(file)


def _json_list(file: "BinaryFile") -> Iterator[Line]:
    """The elements of a list that is the whole file; the lines of a file that only begins like one."""
    try:
        content = file.read(LONGEST_LIST_BYTES + 1)
    except (OSError, EOFError) as error:
        yield Line(1, b"", None, f"the file cannot be read further: {error}")
        return
    if len(content) > LONGEST_LIST_BYTES:
        reason = f"a JSON list of more than {LONGEST_LIST_BYTES:,} bytes is not read: write one object a line"
        yield Line(1, content[:4096], None, reason)
        return
    try:
        rows = orjson.loads(strip_line(content))
    except orjson.JSONDecodeError:
        yield from read_lines(io.BytesIO(content))
        return
    del content
    yield from _rows(rows)


def _rows(rows: Iterable[Any]) -> Iterator[Line]:
    found = iter(rows)
    for number in count(1):
        try:
            row = next(found)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001 - pyarrow fails in as many ways as a file can be damaged
            said = " ".join(str(error).split())[:200]
            yield Line(number, b"", None, f"the file cannot be read further: {said or type(error).__name__}")
            return
        yield _read_row(number, row)


def _read_row(number: int, row: Any) -> Line:
    text = orjson.dumps(row, default=str, option=orjson.OPT_NON_STR_KEYS)
    try:
        return Line(number, text, recognise(_without_nothing(row)), None)
    except ValueError as error:
        return Line(number, text, None, str(error))


def _without_nothing(value: Any) -> Any:
    """The same without fields that hold nothing, which a column of a table has in every row."""
    if isinstance(value, dict):
        return {name: _without_nothing(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nothing(item) for item in value]
    return value


def _csv_dialect(start: bytes) -> str | None:
    """The delimiter of a CSV file with a column that is known; None for what is no such file."""
    lines = strip_line(start).splitlines()
    header = lines[0].decode("utf-8", errors="replace") if lines else ""
    for delimiter in (",", "\t", ";"):
        if COLUMNS.intersection(name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])):
            return delimiter
    return None


def _csv(file: "BinaryFile", delimiter: str) -> Iterator[dict[str, Any]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="windows-1252", newline="")
    for row in csv.DictReader(text, delimiter=delimiter, skipinitialspace=True):
        yield {name.strip(): cell for name, cell in row.items() if isinstance(name, str) and cell not in {None, ""}}


def _parquet(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile

    yield from _checked(ParquetFile(file).iter_batches(ROWS_AT_A_TIME))


def _arrow(file: IO[bytes], *, is_stream: bool) -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    if is_stream:
        batches: Iterable[Any] = pa.ipc.open_stream(file)
    else:
        reader = pa.ipc.open_file(file)
        batches = map(reader.get_batch, range(reader.num_record_batches))
    yield from _checked(batches)


def _checked(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The rows; what is damaged is refused before it is read, since pyarrow itself believes a file's offsets."""
    for batch in batches:
        batch.validate(full=True)
        for number in range(0, batch.num_rows, ROWS_AT_A_TIME):
            yield from batch.slice(number, ROWS_AT_A_TIME).to_pylist()


def _as_cp1252(error: UnicodeError) -> tuple[str, int]:
    wrong = cast("UnicodeDecodeError", error)
    return wrong.object[wrong.start : wrong.end].decode("cp1252", errors="replace"), wrong.end


codecs.register_error("windows-1252", _as_cp1252)
