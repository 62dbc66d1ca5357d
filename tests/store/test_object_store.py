"""A bucket: its address, its objects, and what goes wrong with it."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from potstill.errors import NotAuthorisedError, StoreUnreachableError, UsageError
from potstill.object_store import ObjectStore, open_remote
from tests.ports import free_port
from tests.s3_server import BUCKET, Manner, S3Proxy, running_s3


@pytest.mark.parametrize(
    "address",
    ["gs://bucket/x", "http://127.0.0.1/x", "/a/path", "s3://", "s3:///x", "s3://A_B/x", "s3://ab", "s3://b?x"],
)
def test_what_is_no_address_of_a_bucket_is_said_with_the_remedy(monkeypatch, address: str) -> None:
    monkeypatch.setenv("POTSTILL_STORE", address)
    with pytest.raises(UsageError, match=r"POTSTILL_STORE=.*: not an address of a bucket: write s3://BUCKET"):
        open_remote()


def test_without_the_variable_there_is_no_bucket_and_nothing_is_imported_for_one(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom potstill.artifacts import StageKey, open_store\nfrom potstill.release import all_recipes\n"
        "open_store().mirror_key(StageKey('s', 1, 'd'))\nall_recipes(open_store().root)\n"
        "print([name for name in ('s3fs', 'botocore', 'fsspec') if name in sys.modules])"
    )
    environment = {"POTSTILL_HOME": str(tmp_path), "POTSTILL_STORE": ""}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_without_s3fs_the_remedy_is_its_installation(monkeypatch) -> None:
    monkeypatch.setenv("POTSTILL_STORE", f"s3://bucket/{uuid.uuid4().hex}")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match=r"pip install 'potstill\[s3\]'"):
        open_remote()


@pytest.mark.flow
class TestObjects:
    def test_an_object_is_read_as_it_was_written_and_listed_below_its_folder_only(self, bucket, tmp_path) -> None:
        bucket.write("a/one", b"1")
        bucket.write("a/deep/two", b"2")
        bucket.write("ab/three", b"3")
        found = bucket.read("a/one")
        assert found is not None
        assert found.content == b"1"
        assert bucket.read("a/none") is None
        assert set(bucket.names("a")) == {"a/one", "a/deep/two"}
        assert bucket.names("none") == {}
        (tmp_path / "file").write_bytes(b"x" * 1000)
        bucket.upload(tmp_path / "file", "a/file")
        assert bucket.download("a/file", tmp_path / "new" / "copy")
        assert (tmp_path / "new" / "copy").read_bytes() == b"x" * 1000
        assert not bucket.download("a/none", tmp_path / "none")
        assert not (tmp_path / "none").exists()

    @pytest.mark.drill
    def test_a_large_file_goes_in_parts_and_comes_back_whole(self, bucket, tmp_path) -> None:
        content = bytes(range(256)) * (110 * 4096)
        (tmp_path / "large").write_bytes(content)
        bucket.upload(tmp_path / "large", "large")
        assert bucket.download("large", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content

    def test_of_two_that_replace_the_same_object_one_is_refused(self, bucket) -> None:
        assert bucket.replace("name", b"first", None)
        assert not bucket.replace("name", b"other", None)
        etag = bucket.read("name").etag
        assert bucket.replace("name", b"second", etag)
        assert not bucket.replace("name", b"third", etag)
        assert not bucket.replace("gone", b"third", etag)
        assert bucket.read("name").content == b"second"

    def test_a_put_that_is_sent_twice_finds_its_own_object(self, bucket) -> None:
        """The first answer may be lost on the way; the second one refuses what the first one did."""
        assert bucket.replace("name", b"mine", None)
        assert bucket.replace("name", b"mine", None)


@pytest.mark.flow
class TestTrouble:
    def test_a_bucket_that_does_not_exist(self, bucket, tmp_path) -> None:
        other = ObjectStore("s3://nobody-made-this/x")
        (tmp_path / "file").touch()
        for call in (
            lambda: other.read("name"),
            lambda: other.write("name", b""),
            lambda: other.replace("name", b"", None),
            lambda: other.upload(tmp_path / "file", "name"),
            lambda: other.download("name", tmp_path / "copy"),
            lambda: other.names("name"),
        ):
            with pytest.raises(UsageError, match="no bucket nobody-made-this: create it first"):
                call()

    def test_wrong_keys_and_none(self, monkeypatch, tmp_path) -> None:
        with running_s3(is_guarded=True) as server:
            for name, value in server.environment().items():
                monkeypatch.setenv(name, value)
            with pytest.raises(NotAuthorisedError, match="AWS_SECRET_ACCESS_KEY"):
                ObjectStore(f"s3://{BUCKET}/x").read("name")
            monkeypatch.delenv("AWS_ACCESS_KEY_ID")
            monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
            for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
                monkeypatch.setenv(name, str(tmp_path / "none"))
            with pytest.raises(NotAuthorisedError, match=r"(?i)credentials.*set AWS_ACCESS_KEY_ID"):
                ObjectStore(f"s3://{BUCKET}/x").read("name")

    def test_a_server_that_is_not_there(self, bucket, monkeypatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        with pytest.raises(StoreUnreachableError, match=r"does not answer as it should.*run the same again") as caught:
            ObjectStore(f"s3://{BUCKET}/x").read("name")
        assert not caught.value.fatal, "a task that is retried may find it there again"

    def test_an_endpoint_that_is_no_s3_server(self, bucket, s3_server, monkeypatch, tmp_path) -> None:
        with S3Proxy(s3_server) as proxy:
            proxy.manner = Manner.ELSEWHERE
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            remote = ObjectStore(bucket.address)
            (tmp_path / "file").touch()
            for call in (
                lambda: remote.write("name", b"1"),
                lambda: remote.replace("name", b"1", None),
                lambda: remote.upload(tmp_path / "file", "name"),
            ):
                with pytest.raises(StoreUnreachableError, match=f"endpoint {proxy.url}"):
                    call()

    def test_a_server_that_hangs_up_once_is_asked_again(self, bucket, s3_server, monkeypatch) -> None:
        with S3Proxy(s3_server) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            remote = ObjectStore(bucket.address)
            remote.write("name", b"1")
            proxy.away_for = 1
            assert remote.read("name").content == b"1"
            assert proxy.away_for == 0

    def test_a_server_that_ignores_conditions_is_refused_before_it_loses_a_move(
        self, bucket, s3_server, monkeypatch
    ) -> None:
        with S3Proxy(s3_server) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            proxy.manner = Manner.DEAF
            with pytest.raises(UsageError, match="ignores IfNoneMatch on PUT"):
                ObjectStore(bucket.address).require_conditions()
            proxy.manner = Manner.OPEN
            ObjectStore(bucket.address).require_conditions()

    def test_the_command_line_says_it_in_a_line(self, tmp_path) -> None:
        command = [sys.executable, "-m", "potstill.cli", "releases"]
        environment = {"POTSTILL_HOME": str(tmp_path), "POTSTILL_STORE": "gs://bucket"}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (run.returncode, run.stdout) == (2, "")
        assert run.stderr.startswith("error: POTSTILL_STORE=gs://bucket: not an address of a bucket")
        assert len(run.stderr.splitlines()) == 1
