"""Prompts are read out of a bucket as out of a folder, and a store that fails is an error, never a smaller prompt set."""

import gzip
import json
from pathlib import Path

import pytest

from potstill.artifacts import ArtifactStore
from potstill.curation.curate import PROMPTS, QUARANTINE, curate, stage_key
from potstill.curation.inputs import find_inputs
from potstill.errors import DataError, NotAuthorisedError, StoreUnreachableError
from potstill.object_store import file_system
from potstill.recipe import Curation
from potstill.records import Prompt, read_parquet
from tests.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.flow


def lines(*texts: str) -> bytes:
    return b"".join(json.dumps({"prompt": text}).encode() + b"\n" for text in texts)


@pytest.fixture
def logs(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Logs":
    for name, value in s3_server.environment().items():
        if name != "POTSTILL_STORE":
            monkeypatch.setenv(name, value)
    return Logs(f"s3://{BUCKET}/{tmp_path.name}")


class Logs:
    def __init__(self, address: str) -> None:
        self.address = address

    def put(self, name: str, content: bytes) -> None:
        file_system().pipe_file(f"{self.address.removeprefix('s3://')}/{name}", content)

    def names(self, pattern: str) -> list[str]:
        return [file.name.removeprefix(f"{self.address}/") for file in find_inputs((f"{self.address}{pattern}",))]


def test_an_object_a_glob_and_a_prefix_are_inputs(logs: Logs):
    for name in ("a.jsonl", "june/b.jsonl.gz", "june/c.csv", "june/.hidden", "june-too/e", "july/d.jsonl"):
        logs.put(name, b"x")
    assert logs.names("/a.jsonl") == ["a.jsonl"]
    assert logs.names("/june") == logs.names("/june/") == ["june/b.jsonl.gz", "june/c.csv"]
    assert logs.names("/june/*.gz") == ["june/b.jsonl.gz"]
    assert logs.names("/**/*.jsonl") == ["a.jsonl", "july/d.jsonl"]


def test_prompts_come_out_of_a_bucket_and_name_their_object(logs: Logs, tmp_path: Path):
    logs.put("a.jsonl.gz", gzip.compress(lines(*(f"a {number}" for number in range(3000)))))
    logs.put("b.csv", b"prompt\nask ann@acme.io\na 1\n")
    store = ArtifactStore(tmp_path / "home")
    made = store.path(curate(Curation(inputs=(logs.address,)), "extraction", store))
    prompts = list(read_parquet(made / PROMPTS, Prompt))
    assert len(prompts) == 3001
    assert prompts[-1].messages == [{"role": "user", "content": "ask person1@example.com"}]
    assert prompts[-1].source == f"{logs.address}/b.csv:1"
    assert (made / QUARANTINE).read_bytes() == b""


def test_the_key_follows_the_content(logs: Logs):
    def key() -> str:
        return stage_key(Curation(inputs=(f"{logs.address}/*",)), "extraction").digest

    logs.put("a.jsonl", lines("a"))
    first = key()
    logs.put("a.jsonl", lines("b"))
    second = key()
    logs.put("a.jsonl", lines("a"))
    assert key() == first != second


def test_what_is_not_there_is_told(logs: Logs):
    for pattern in ("/none.jsonl", "/none/*.jsonl"):
        with pytest.raises(DataError, match=rf"input {logs.address}{pattern[:5]}.*: no such object"):
            find_inputs((f"{logs.address}{pattern}",))
    with pytest.raises(DataError, match="no such object"):
        find_inputs(("s3://no-such-bucket-here/a.jsonl",))


def test_keys_that_are_missing_are_told_with_their_variables(logs: Logs, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(NotAuthorisedError, match=f"input {logs.address}/a: .*: set AWS_ACCESS_KEY_ID and AWS_SECRET"):
        find_inputs((f"{logs.address}/a",))


def test_a_store_that_does_not_answer_is_told(logs: Logs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreUnreachableError, match=f"input {logs.address}/a: the store does not answer as it should"):
        find_inputs((f"{logs.address}/a",))


def test_an_object_that_is_replaced_while_it_is_read_breaks_off(logs: Logs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("potstill.curation.objects.BLOCK_BYTES", 5000)
    logs.put("a.jsonl", lines(*(f"a {number}" for number in range(20_000))))
    [found] = find_inputs((f"{logs.address}/a.jsonl",))

    def read() -> None:
        with found.open() as file:
            file.read(100)
            logs.put("a.jsonl", lines(*(f"b {number}" for number in range(20_000))))
            while file.read(5000):
                pass

    with pytest.raises(StoreUnreachableError, match="does not answer as it should"):
        read()


def test_a_confined_run_reads_below_its_roots_only(logs: Logs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("own/a.jsonl", "foreign/b.jsonl"):
        logs.put(name, lines("a"))
    monkeypatch.setenv("POTSTILL_DATA_ROOTS", f"{tmp_path}:{logs.address}/own/")
    assert logs.names("/own/*") == ["own/a.jsonl"]
    for pattern in ("/foreign/b.jsonl", "/*", "/own/../foreign/b.jsonl"):
        with pytest.raises(NotAuthorisedError, match="lies below no root of POTSTILL_DATA_ROOTS"):
            find_inputs((f"{logs.address}{pattern}",))
