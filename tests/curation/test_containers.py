"""Whatever a file is packed in, its prompts are found; wherever it breaks off, what came before is kept and the break told."""

import csv
import gzip
import io
import json
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.curation.containers import read_file
from potstill.curation.inputs import find_inputs
from potstill.errors import DataError

ROWS = [{"prompt": f"prompt {number}", "reference": "é"} for number in range(300)]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()


def contents(data):
    found = list(read_file(io.BytesIO(data)))
    return [line.prompt.messages[-1]["content"] for line in found if line.prompt], [
        line for line in found if line.reason
    ]


def parquet(rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def arrow(rows, make):
    table, buffer = pa.Table.from_pylist(rows), io.BytesIO()
    with make(buffer, table.schema) as writer:
        writer.write_table(table, 100)
    return buffer.getvalue()


def as_csv(rows, **how):
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, rows[0], **how)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def stream(data):
    """As `zstd` packs a file, without its length."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(data)
    return sink.getvalue().to_pybytes()


PACKED = {
    "lines": LINES,
    "gzip": gzip.compress(LINES),
    "two gzip members": gzip.compress(LINES[: len(LINES) // 2]) + gzip.compress(LINES[len(LINES) // 2 :]),
    "zstandard": stream(LINES),
    "JSON list": json.dumps(ROWS, indent=1).encode(),
    "JSON list with a byte order mark": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "JSON list in gzip": gzip.compress(json.dumps(ROWS).encode()),
    "Parquet": parquet(ROWS),
    "Arrow stream": arrow(ROWS, pa.ipc.new_stream),
    "Arrow file": arrow(ROWS, pa.ipc.new_file),
    "CSV": as_csv(ROWS),
    "CSV of Excel": b"\xef\xbb\xbf" + as_csv(ROWS, delimiter=";"),
    "tabs": as_csv(ROWS, delimiter="\t"),
    "CSV in zstandard": stream(as_csv(ROWS)),
}


@pytest.mark.parametrize("packed", PACKED.values(), ids=PACKED)
def test_what_a_file_holds_is_found_by_its_content(packed):
    found = list(read_file(io.BytesIO(packed)))
    assert [line.reason for line in found] == [None] * 300
    assert [line.prompt.messages[0]["content"] for line in found] == [row["prompt"] for row in ROWS]
    assert {line.prompt.reference for line in found} == {"é"}
    assert [line.number for line in found] == list(range(1, 301))


@pytest.mark.parametrize("pack", [gzip.compress, stream])
@pytest.mark.parametrize("write", [as_csv, lambda rows: "\n".join(map(json.dumps, rows)).encode()])
def test_a_packed_file_that_is_cut_off_or_damaged_gives_what_it_has_and_says_so(pack, write):
    random = Random(1)
    rows = [{"prompt": f"{number} {random.randbytes(200).hex()}"} for number in range(2000)]
    whole = pack(write(rows))
    middle = len(whole) // 2
    for broken, why in ((whole[:-20], "it ends within its"), (whole[:middle] + b"?" * 20 + whole[middle:], "data are")):
        read, bad = contents(broken)
        assert read[:700] == [row["prompt"] for row in rows[:700]]
        assert bad[-1].reason.startswith("the file cannot be read further: ")
        assert why in bad[-1].reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x1f\x8bnothing", "the file cannot be unpacked"),
        (b"\x28\xb5\x2f\xfdnothing at all", "the file cannot be unpacked"),
        (b"PAR1 nothing", "the file cannot be read further"),
        (b"ARROW1 nothing", "the file cannot be read further"),
        (b"\xff\xff\xff\xffnothing", "the file cannot be read further"),
        (gzip.compress(parquet(ROWS)), "a table within a packed file: unpack it"),
    ],
)
def test_what_only_looks_like_a_packed_file_is_told_in_one_line(data, reason):
    read, [bad] = contents(data)
    assert read == []
    assert bad.reason.startswith(reason)


def test_a_table_with_nested_columns_leaves_out_what_a_row_does_not_have():
    rows = [
        {"messages": [{"role": "user", "content": "a", "name": None}], "tools": None},
        {"messages": [{"role": "user", "content": "b", "name": "ann"}], "tools": [{"type": "function"}]},
    ]
    first, second = read_file(io.BytesIO(parquet(rows)))
    assert first.prompt.messages == [{"role": "user", "content": "a"}]
    assert second.prompt.messages == [{"role": "user", "content": "b", "name": "ann"}]
    assert second.prompt.tools == [{"type": "function"}]


def test_messages_may_be_json_text_in_a_table():
    rows = [{"messages": json.dumps([{"role": "user", "content": "a, b"}]), "id": 1, "other": "x"}]
    for data in (as_csv(rows), parquet(rows)):
        [line] = read_file(io.BytesIO(data))
        assert (line.prompt.messages, line.prompt.row_id) == ([{"role": "user", "content": "a, b"}], "1")


def test_a_csv_cell_may_hold_line_ends_and_windows_text():
    data = 'prompt,reference\n"two\nlines €",x\n'.encode("cp1252")
    [line] = read_file(io.BytesIO(data))
    assert line.prompt.messages[0]["content"] == "two\nlines €"


def test_a_bad_row_of_a_table_is_told_with_its_number():
    rows = [{"prompt": "a"}, {"prompt": ""}, {"prompt": "b"}]
    read, [bad] = contents(parquet(rows))
    assert (read, bad.number, bad.reason) == (["a", "b"], 2, "prompt: neither text nor a list of messages")


def test_a_line_of_a_list_does_not_make_a_list_of_the_file():
    read, [bad] = contents(b'[1, 2]\n{"prompt": "a"}\n')
    assert (read, bad.number, bad.reason) == (["a"], 1, "a JSON list, not an object")


class TestFolders:
    def test_a_folder_stands_for_its_files_and_a_glob_for_files_only(self, tmp_path):
        (tmp_path / "logs" / "june").mkdir(parents=True)
        for name in ("b.jsonl", "a.jsonl.gz", "june/c.csv", ".hidden"):
            (tmp_path / "logs" / name).write_bytes(b"x")
        names = [file.name.removeprefix(f"{tmp_path}/") for file in find_inputs((str(tmp_path / "logs"),))]
        assert names == ["logs/a.jsonl.gz", "logs/b.jsonl", "logs/june/c.csv"]
        files = find_inputs((str(tmp_path / "logs" / "*"),))
        assert [Path(file.name).name for file in files] == ["a.jsonl.gz", "b.jsonl"]

    def test_a_saved_data_set_is_read_as_its_files(self, tmp_path):
        from datasets import Dataset, DatasetDict

        DatasetDict({"train": Dataset.from_list(ROWS[:200]), "more": Dataset.from_list(ROWS[200:])}).save_to_disk(
            tmp_path / "set"
        )
        paths = [Path(file.name) for file in find_inputs((str(tmp_path / "set"),))]
        assert {path.suffix for path in paths} == {".arrow"}
        assert sum(len(contents(path.read_bytes())[0]) for path in paths) == 300

    def test_a_data_set_that_lacks_a_file_says_which(self, tmp_path):
        (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data-0.arrow"}]}')
        with pytest.raises(DataError, match=r"state\.json: names data-0\.arrow, which is not there"):
            find_inputs((str(tmp_path),))
        (tmp_path / "state.json").write_text("{}")
        with pytest.raises(DataError, match=r"state\.json: lists no files of a saved data set"):
            find_inputs((str(tmp_path),))

    def test_an_empty_folder_is_told(self, tmp_path):
        with pytest.raises(DataError, match="a folder without files"):
            find_inputs((str(tmp_path),))


@pytest.mark.parametrize("kind", ["lines", "gzip", "zstandard", "Parquet", "Arrow file", "CSV", "JSON list"])
def test_a_disk_or_a_store_that_fails_is_no_bad_line(kind):
    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 500:
                raise ConnectionResetError("gone")
            return super().read(min(size, 400) if size > 0 else 400)

    with pytest.raises(ConnectionResetError):
        list(read_file(Failing(PACKED[kind] + b" " * 2000)))


@settings(max_examples=200, deadline=None)
@given(
    start=st.sampled_from(
        [b"", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"ARROW1", b"\xff" * 4, b"[", b"prompt,x\n"]
    ),
    rest=st.binary(max_size=200),
)
def test_no_bytes_make_it_raise(start, rest):
    for line in read_file(io.BytesIO(start + rest)):
        assert (line.prompt is None) == bool(line.reason)


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(sorted(PACKED)), at=st.floats(0, 1), by=st.binary(min_size=1, max_size=4))
def test_no_damage_makes_it_raise(kind, at, by):
    data = bytearray(PACKED[kind])
    place = int(at * (len(data) - 1))
    data[place : place + len(by)] = by
    for line in read_file(io.BytesIO(bytes(data))):
        assert (line.prompt is None) == bool(line.reason)
