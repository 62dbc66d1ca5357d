"""A webhook may name a file of prompts; it gets no other file, and learns of none."""

import json
import os
import socket
import stat
from io import BytesIO
from pathlib import Path

import pytest

from potstill.curation.readers import read_lines
from potstill.errors import DataError, NotAuthorisedError, UsageError
from potstill.inbox import count_landed, seal
from potstill.webhook.references import ReferenceReader

PROMPTS = b"".join(json.dumps({"messages": [{"role": "user", "content": f"p{n}"}]}).encode() + b"\n" for n in range(50))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An allowed folder with a file, beside what must not be read."""
    (tmp_path / "open/inner").mkdir(parents=True)
    (tmp_path / "open/today.jsonl").write_bytes(PROMPTS)
    (tmp_path / "open-not").mkdir()
    for secret in ("secret.jsonl", "open-not/secret.jsonl"):
        (tmp_path / secret).write_bytes(PROMPTS)
    return tmp_path


def read(place: Path, uri: str) -> bytes:
    with ReferenceReader([(place / "open").as_uri() + "/"]).open(uri) as file:
        return file.read()


def test_what_lies_in_the_folder_is_read_however_it_is_written(place: Path) -> None:
    folder = place.as_uri()
    (place / "open/a b.jsonl").write_bytes(PROMPTS)
    (place / "open/link.jsonl").symlink_to("today.jsonl")
    for path in ("open/today.jsonl", "open/inner/../today.jsonl", "open/a%20b.jsonl", "open/link.jsonl"):
        assert read(place, f"{folder}/{path}") == PROMPTS
    assert read(place, f"file://localhost{place}/open/today.jsonl") == PROMPTS


def test_a_prefix_that_is_a_link_itself_leads_where_it_leads(place: Path) -> None:
    (place / "alias").symlink_to("open")
    with ReferenceReader([(place / "alias").as_uri()]).open(f"{place.as_uri()}/open/today.jsonl") as file:
        assert file.read() == PROMPTS


OUTSIDE = [
    "{}/secret.jsonl",
    "{}/missing.jsonl",
    "{}/open-not/secret.jsonl",
    "{}/open/../secret.jsonl",
    "{}/open/%2e%2e/secret.jsonl",
    "{}/open/inner/../../secret.jsonl",
    "{}/open/link-out.jsonl",
    "{}/open/link-out-to-nothing.jsonl",
    "{}/open/folder-out/secret.jsonl",
    "{}/open/today.jsonl%00.txt",
    "{}/open/today.jsonl?x=1",
    "{}/open/loop",
    "file:///etc/passwd",
    "file:etc/passwd",
    "file://elsewhere/etc/passwd",
    "/etc/passwd",
    "http://127.0.0.1:1/x",
    "memory://x",
    "s3://bucket/key",
    "file://[",
    "",
]


@pytest.mark.parametrize("uri", OUTSIDE)
def test_what_lies_outside_is_refused_in_the_same_words_whether_it_is_there_or_not(place: Path, uri: str) -> None:
    (place / "open/link-out.jsonl").symlink_to(place / "secret.jsonl")
    (place / "open/link-out-to-nothing.jsonl").symlink_to(place / "nothing")
    (place / "open/folder-out").symlink_to(place)
    (place / "open/loop").symlink_to(place / "open/loop")
    with pytest.raises(NotAuthorisedError) as refused:
        read(place, uri.format(place.as_uri()))
    assert str(refused.value) == "the address is under none of the prefixes that the receiver's configuration allows"


def test_without_prefixes_nothing_is_allowed(place: Path) -> None:
    with pytest.raises(NotAuthorisedError), ReferenceReader([]).open((place / "open/today.jsonl").as_uri()):
        pass


def test_what_is_no_plain_file_is_refused_and_waited_for_by_nobody(place: Path, monkeypatch) -> None:
    os.mkfifo(place / "open/pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(place / "open")  # the address of a socket may not be long
        listener.bind("socket")
        for name in ("pipe", "socket", "inner", "missing.jsonl", ""):
            with pytest.raises(DataError):
                read(place, f"{place.as_uri()}/open/{name}")


BUCKET = "s3://traffic/prompts/"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://traffic/other/today.jsonl",
        "s3://traffic/prompts-not/today.jsonl",
        "s3://traffic/prompts",
        "s3://traffic/prompts/../other/today.jsonl",
        "s3://traffic/prompts/*",
        "s3://traffic/prompts/a?versionId=1",
        "s3://other/prompts/today.jsonl",
        "s3://traffic",
        "s3a://traffic/prompts/today.jsonl",
    ],
)
def test_an_object_outside_is_refused_before_any_store_is_asked(uri: str) -> None:
    with pytest.raises(NotAuthorisedError), ReferenceReader([BUCKET]).open(uri):
        pass


@pytest.mark.parametrize(
    "prefix", ["/srv/prompts", "file://srv/prompts", "http://host/", "s3://", "s3:///x", "s3://b/../c", ""]
)
def test_a_prefix_that_is_no_folders_address_is_refused_at_the_start(prefix: str) -> None:
    with pytest.raises(UsageError, match="write file:///folder/ or s3://bucket/folder/"):
        ReferenceReader([prefix])


class TestByWebhook:
    def test_the_file_is_copied_before_the_answer_and_a_repeat_copies_nothing(self, receiver, place) -> None:
        with receiver(references={"prefixes": [(place / "open").as_uri()]}) as sender:
            content = {"uri": (place / "open/today.jsonl").as_uri()}
            answer = sender.send("m1", content)
            assert (answer.status_code, answer.json()) == (202, {"accepted": 50, "rejected": 0, "errors": []})
            (place / "open/today.jsonl").unlink()
            assert sender.send("m1", content).json() == {"duplicate": True}
            assert sender.send("m2", content).status_code == 422
            [segment] = seal(sender.home, "demo")
        assert segment.read_bytes() == PROMPTS
        assert stat.S_IMODE(segment.stat().st_mode) == 0o600

    def test_outside_is_403_with_one_message_and_nothing_lands(self, receiver, place) -> None:
        with receiver(references={"prefixes": [(place / "open").as_uri()]}) as sender:
            there, missing = (
                sender.send(name, {"uri": f"{place.as_uri()}/{name}.jsonl"}) for name in ("secret", "missing")
            )
            assert (there.status_code, missing.status_code) == (403, 403)
            assert there.json() == missing.json()
            assert count_landed(sender.home, "demo") == 0

    def test_a_file_over_the_bound_is_422_and_leaves_nothing(self, receiver, place) -> None:
        bound = len(PROMPTS) - 1
        with receiver(references={"prefixes": [(place / "open").as_uri()], "max_bytes": bound}) as sender:
            answer = sender.send("m1", {"uri": (place / "open/today.jsonl").as_uri()})
            assert (answer.status_code, "split it" in answer.json()["error"]) == (422, True)
            assert list((sender.home / "inbox/demo/landed").iterdir()) == []

    def test_a_line_without_an_end_is_named_once_and_not_held_in_memory(self, receiver, place) -> None:
        with (place / "open/long.jsonl").open("wb") as file:
            file.write(b"x" * 20_000_000 + b"\n" + PROMPTS)
        with receiver(references={"prefixes": [(place / "open").as_uri()]}) as sender:
            answer = sender.send("m1", {"uri": (place / "open/long.jsonl").as_uri()})
            assert answer.json() == {
                "accepted": 50,
                "rejected": 1,
                "errors": [{"line": 1, "reason": "longer than 4,194,304 bytes"}],
            }
            [segment] = seal(sender.home, "demo")
        assert sum(1 for found in read_lines(BytesIO(segment.read_bytes())) if found.prompt) == 50


@pytest.mark.flow
def test_an_object_of_a_real_store_is_copied(receiver, monkeypatch) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        store = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        store.create_bucket(Bucket="traffic", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        store.put_object(Bucket="traffic", Key="prompts/today.jsonl", Body=PROMPTS)
        with receiver(references={"prefixes": [BUCKET]}) as sender:
            assert sender.send("m1", {"uri": f"{BUCKET}today.jsonl"}).json()["accepted"] == 50
            assert sender.send("m2", {"uri": f"{BUCKET}missing.jsonl"}).status_code == 422
            [segment] = seal(sender.home, "demo")
            server.stop()
            assert sender.send("m3", {"uri": f"{BUCKET}today.jsonl"}).status_code == 503
    finally:
        server.stop()
    assert segment.read_bytes() == PROMPTS
