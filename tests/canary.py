"""Looks for a secret in every byte below a folder: as it is, encoded, packed, in Parquet columns and in databases."""

import base64
import gzip
import io
import json
import shutil
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

ZLIB_HEADERS = {b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"}
DEEPEST = 6
"""Packed things in packed things."""


class Find(NamedTuple):
    """Where a form of the secret stands."""

    place: str
    form: str


class Scanner:
    """Finds one secret; it counts what it has looked into, so that a scan of nothing does not pass for a clean one."""

    def __init__(self, secret: str) -> None:
        self._forms = _forms(secret)
        self.files = 0
        self.opened: set[str] = set()
        """The kinds of packed things and databases that were opened."""

    def scan(self, *roots: Path) -> list[Find]:
        """Every place below these folders, names of files included."""
        found: list[Find] = []
        for root in roots:
            for path in sorted(root.rglob("*")):
                found += self.look(str(path), path.name.encode())
                if path.is_file() and not path.is_symlink():
                    self.files += 1
                    found += self.look(str(path), path.read_bytes())
                    if path.read_bytes()[:16] == b"SQLite format 3\0":
                        found += self._look_into_database(path)
        return found

    def look(self, place: str, content: bytes, depth: int = 0) -> list[Find]:
        """What stands in these bytes, and in what is packed in them."""
        found = [Find(place, name) for name, form in self._forms.items() if form in content]
        if depth < DEEPEST:
            for kind, part in _unpack(content):
                self.opened.add(kind)
                found += self.look(f"{place} > {kind}", part, depth + 1)
        return found

    def _look_into_database(self, path: Path) -> list[Find]:
        """Every cell: a long one lies in pieces on several pages. Read from a copy, so that its WAL stays as it is."""
        found: list[Find] = []
        with TemporaryDirectory() as place:
            for suffix in ("", "-wal"):
                if (source := path.with_name(path.name + suffix)).exists():
                    shutil.copy(source, place)
            with closing(sqlite3.connect(Path(place) / path.name)) as database:
                database.text_factory = bytes
                tables = [
                    name.decode() for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'")
                ]
                for table in tables:
                    self.opened.add("database")
                    for row in database.execute(f'SELECT * FROM "{table}"'):
                        for cell in row:
                            if isinstance(cell, bytes):
                                found += self.look(f"{path} > table {table}", cell)
        return found


def _forms(secret: str) -> dict[str, bytes]:
    plain = secret.encode()
    forms = {
        "plain": plain,
        "percent-encoded": quote(secret, safe="").encode(),
        "JSON": json.dumps(secret)[1:-1].encode(),
        "JSON with escaped slashes": plain.replace(b"/", b"\\/"),
        "UTF-16": secret.encode("utf-16-le"),
        "hexadecimal": plain.hex().encode(),
    }
    for before in (0, 1, 2):  # Base64 of the secret looks otherwise after one or two other bytes
        padded = b"\0" * before + plain
        middle = slice(4 if before else 0, len(padded) // 3 * 4)
        forms[f"Base64 after {before}"] = base64.b64encode(padded)[middle]
        forms[f"Base64 of URLs after {before}"] = base64.urlsafe_b64encode(padded)[middle]
    return forms


def _unpack(content: bytes) -> Iterator[tuple[str, bytes]]:
    """What lies packed in some bytes, with the name of the packing; nothing where they only look packed."""
    for kind, looks_so, unpack in PACKINGS:
        if looks_so(content):
            with suppress(ValueError, EOFError, OSError, KeyError, zlib.error, zipfile.BadZipFile, tarfile.TarError):
                for part in unpack(content):
                    yield kind, part


def _from_zstd(content: bytes) -> list[bytes]:
    return [pa.CompressedInputStream(pa.BufferReader(content), "zstd").read()]


def _from_zip(content: bytes) -> Iterator[bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            yield name.encode()
            yield archive.read(name)


def _from_tar(content: bytes) -> Iterator[bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive.getmembers():
            if (file := archive.extractfile(member)) is not None:
                yield file.read()


def _from_parquet(content: bytes) -> Iterator[bytes]:
    table = pq.read_table(pa.BufferReader(content))
    yield str(table.schema).encode()
    for column in table.columns:
        for cell in column.to_pylist():
            yield cell if isinstance(cell, bytes) else str(cell).encode()


def _from_json(content: bytes) -> Iterator[bytes]:
    """The texts of JSON or of JSON lines, without any escaping; JSON that stands as text in JSON is unpacked next."""
    for part in [content] if _is_json(content) else content.splitlines():
        with suppress(ValueError):
            yield from (text.encode("utf-8", "surrogatepass") for text in _texts(json.loads(part)))


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


PACKINGS: list[tuple[str, Callable[[bytes], bool], Callable[[bytes], Iterable[bytes]]]] = [
    ("gzip", lambda content: content[:2] == b"\x1f\x8b", lambda content: [gzip.decompress(content)]),
    ("zstd", lambda content: content[:4] == b"\x28\xb5\x2f\xfd", _from_zstd),
    ("zlib", lambda content: content[:2] in ZLIB_HEADERS, lambda content: [zlib.decompress(content)]),
    ("zip", lambda content: content[:2] == b"PK", _from_zip),
    ("tar", lambda content: content[257:262] == b"ustar", _from_tar),
    ("Parquet", lambda content: content[:4] == b"PAR1", _from_parquet),
    ("JSON", lambda content: content[:1] in {b"{", b"["}, _from_json),
]


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield str(name)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
