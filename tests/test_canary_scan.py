"""The scan for a secret can fail: what is planted is found, however it is kept."""

import base64
import gzip
import io
import json
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.canary import Scanner

SECRET = "sk-canary/7f3Qz+planted_K9==x"


def in_text(path: Path) -> None:
    path.write_text(f"a log line with {SECRET} in it\n")


def in_a_name(path: Path) -> None:
    path.with_name(quote(SECRET, safe="")).touch()


def in_url(path: Path) -> None:
    path.write_text(f"GET /?key={quote(SECRET, safe='')}")


def in_base64(before: str) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(base64.b64encode(f"{before}{SECRET}, and more".encode())) and None


def in_escaped_json(path: Path) -> None:
    path.write_text('{"key": "' + "".join(f"\\u{ord(char):04x}" for char in SECRET) + '"}')


def in_json_lines(path: Path) -> None:
    in_escaped_json(path)
    path.write_text('{"n": 1}\n' + path.read_text() + "\n{cut")


def in_json_in_json(path: Path) -> None:
    path.write_text(json.dumps({"result": json.dumps({"key": SECRET}).replace("/", "\\/")}))


def in_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(SECRET.encode()))


def in_zstd(path: Path) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(SECRET.encode())


def in_zlib(path: Path) -> None:
    path.write_bytes(zlib.compress(SECRET.encode()))


def in_gzip_in_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.gz", gzip.compress(SECRET.encode()))


def in_tar_in_gzip(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("inner")
        member.size = len(SECRET)
        archive.addfile(member, io.BytesIO(SECRET.encode()))


def in_parquet(path: Path) -> None:
    table = pa.table({"id": ["a", "b"] * 500, "said": ["nothing", f"key {SECRET}"] * 500})
    pq.write_table(table, path, compression="zstd")


def in_parquet_bytes(path: Path) -> None:
    pq.write_table(pa.table({"blob": [gzip.compress(b"x"), SECRET.encode()]}), path, compression="snappy")


def in_database_over_pages(path: Path) -> None:
    """At one of these places it lies on two pages, so that no search of the raw file finds it."""
    for before in range(0, 5000, len(SECRET) // 2):
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("PRAGMA synchronous=OFF")
            database.execute("CREATE TABLE logs (message TEXT)")
            database.execute("INSERT INTO logs VALUES (?)", ("x" * before + SECRET + "y" * (14_000 - before),))
        if SECRET.encode() not in path.read_bytes():
            return
    raise AssertionError("it lies on one page wherever it is put")


def in_database_packed(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE answers (reply BLOB)")
        database.execute("INSERT INTO answers VALUES (?)", (zlib.compress(SECRET.encode()),))


def in_wal(path: Path) -> sqlite3.Connection:
    """The connection stays open, so that what was written stays in the WAL."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA wal_autocheckpoint=0")
    database.execute("CREATE TABLE logs (message TEXT)")
    database.execute("INSERT INTO logs VALUES (?)", (gzip.compress(SECRET.encode()),))
    database.commit()
    return database


PLANTS = {
    "text": in_text,
    "a file's name": in_a_name,
    "a URL": in_url,
    "Base64": in_base64(""),
    "Base64 of a bearer token": in_base64("Bearer "),
    "Base64 of basic authorisation": in_base64("user:"),
    "Base64 after another letter": in_base64("u"),
    "escaped JSON": in_escaped_json,
    "JSON lines": in_json_lines,
    "JSON in JSON": in_json_in_json,
    "gzip": in_gzip,
    "zstd": in_zstd,
    "zlib": in_zlib,
    "gzip in zip": in_gzip_in_zip,
    "tar in gzip": in_tar_in_gzip,
    "a Parquet column": in_parquet,
    "a Parquet column of bytes": in_parquet_bytes,
    "a database, over two pages": in_database_over_pages,
    "a database, packed": in_database_packed,
    "a WAL": in_wal,
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_what_is_planted_is_found(plant: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    kept = plant(tmp_path / "deep" / "er" / "planted")
    assert Scanner(SECRET).scan(tmp_path)
    if isinstance(kept, sqlite3.Connection):
        kept.close()


def test_where_nothing_is_planted_nothing_is_found(tmp_path: Path) -> None:
    for name, plant in PLANTS.items():
        kept = plant(tmp_path / name)
        if isinstance(kept, sqlite3.Connection):
            kept.close()
    scanner = Scanner("sk-canary/another-one_that_is_nowhere")
    assert scanner.scan(tmp_path) == []
    assert scanner.files >= len(PLANTS)
    assert scanner.opened >= {"gzip", "zstd", "zlib", "zip", "tar", "Parquet", "database", "JSON"}
