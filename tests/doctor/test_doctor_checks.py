"""Each check of the doctor in the case that it is there for, made for real: a full disk, a wrong version, a taken port."""

import base64
import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from potstill.doctor import machine, software, storage
from potstill.doctor.finding import Check, Finding, examine, fail, ok
from potstill.errors import UsageError
from potstill.object_store import ObjectStore
from potstill.webhook.signatures import read_secrets
from tests.s3_server import Manner, S3Proxy, S3Server


def one(found: Finding | Iterator[Finding]) -> Finding:
    if isinstance(found, Finding):
        return found
    [only] = found
    return only


def script(directory: Path, name: str, text: str) -> str:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


class TestExamine:
    def test_one_check_that_raises_or_hangs_is_a_line_and_stops_no_other(self):
        def raises() -> Finding:
            raise ZeroDivisionError("division by zero")

        def says_itself() -> Finding:
            raise UsageError("POTSTILL_DATA_ROOTS: data: name an absolute directory")

        release = threading.Event()
        began = time.monotonic()
        found = examine(
            [
                Check("first", lambda: ok("first", "well")),
                Check("raises", raises),
                Check("hangs", lambda: release.wait(30) and ok("hangs", "?"), seconds=0.2),
                Check("ours", says_itself),
                Check("many", lambda: (ok("many", str(number)) for number in range(2))),
            ]
        )
        assert time.monotonic() - began < 5
        release.set()
        assert [(line.status, line.name) for line in found] == [
            ("ok", "first"),
            ("fail", "raises"),
            ("fail", "hangs"),
            ("fail", "ours"),
            ("ok", "many"),
            ("ok", "many"),
        ]
        assert "ZeroDivisionError" in found[1].remedy
        assert "no answer within 0.2 s" in found[2].said
        assert (found[3].said, found[3].remedy) == ("POTSTILL_DATA_ROOTS: data: name an absolute directory", "")

    def test_checks_run_side_by_side(self):
        def slow() -> Finding:
            time.sleep(0.2)
            return ok("slow", "")

        began = time.monotonic()
        examine([Check("slow", slow)] * 10)
        assert time.monotonic() - began < 1.5


class TestSoftware:
    def test_this_python_will_do(self):
        assert software.check_python().status == "ok"

    def test_another_python_will_not(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("sys.version_info", (3, 9, 1))
        found = software.check_python()
        assert found.status == "fail"
        assert "3.9.1, but potstill is for" in found.said

    def test_a_version_that_was_not_tried_is_named_with_both(self, tmp_path: Path):
        constraints = tmp_path / "constraints.txt"
        constraints.write_text("# tried\npydantic==1.0.0\norjson==0.1 # old\nno-such-package==1\n")
        found = list(software.check_packages(constraints))[-1]
        assert found.status == "warn"
        assert "pydantic " in found.said
        assert "(tried 1.0.0)" in found.said
        assert "orjson" in found.said
        assert "no-such" not in found.said
        assert found.remedy == "pip install -c constraints.txt -e ."

    def test_where_there_are_no_constraints_it_says_so(self, tmp_path: Path):
        found = list(software.check_packages(tmp_path / "constraints.txt"))[-1]
        assert (found.status, found.name) == ("warn", "constraints")

    @pytest.mark.parametrize(("line", "said"), [("pydantic<2", "(needs <2)"), ("no-such-package", "is missing")])
    def test_a_requirement_that_is_not_met_fails(self, monkeypatch: pytest.MonkeyPatch, line: str, said: str):
        monkeypatch.setattr("importlib.metadata.requires", lambda _: [line, 'absent; extra == "dev"'])
        found = next(software.check_packages())
        assert found.status == "fail"
        assert said in found.said
        assert "absent" not in found.said

    def test_a_build_for_the_cpu_counts_as_its_version(self, tmp_path: Path):
        constraints = tmp_path / "constraints.txt"
        constraints.write_text(
            f"torch=={__import__('importlib.metadata').metadata.version('torch').partition('+')[0]}\n"
        )
        assert list(software.check_packages(constraints))[-1].status == "ok"


QUERY = 'case "$1" in --query*) echo "NVIDIA H100, 550.54, 81559, 12";; *) echo "CUDA Version: 12.4";; esac'


class TestMachine:
    def test_a_machine_without_a_card_is_no_failure(self):
        found = one(machine.check_gpu("no-such-nvidia-smi"))
        assert (found.status, found.name) == ("warn", "gpu")

    def test_a_card_and_its_driver_are_named(self, tmp_path: Path):
        program = script(tmp_path, "nvidia-smi", QUERY)
        card, torch = machine.check_gpu(program, cuda="12.4")
        assert card == ok("gpu", "NVIDIA H100, driver 550.54, 12 of 81559 MiB in use")
        assert torch.status == "ok"

    def test_a_driver_too_old_for_torch_fails(self, tmp_path: Path):
        program = script(tmp_path, "nvidia-smi", QUERY)
        found = list(machine.check_gpu(program, cuda="13.0"))[-1]
        assert found == fail(
            "torch", "built for CUDA 13.0, the driver knows 12.4", "update the driver, or install a build for its CUDA"
        )

    def test_a_driver_that_does_not_answer_fails(self, tmp_path: Path):
        program = script(tmp_path, "nvidia-smi", "echo 'Driver/library version mismatch' >&2; exit 18")
        found = one(machine.check_gpu(program))
        assert found.status == "fail"
        assert "version mismatch" in found.said

    def test_a_driver_that_hangs_ends_in_a_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(machine, "NVIDIA_SECONDS", 0.1)
        program = script(tmp_path, "nvidia-smi", "exec sleep 5")
        [found] = examine([Check("gpu", lambda: machine.check_gpu(program))])
        assert found.status == "fail"
        assert "timed out" in found.said

    def test_memory_is_counted(self):
        assert "cores" in machine.check_memory().said

    def test_a_place_that_is_not_there_yet_is_judged_by_its_disk(self, tmp_path: Path):
        assert str(tmp_path) in machine.check_disk(tmp_path / "a" / "b").said

    def test_the_zone_is_said(self):
        assert "UTC" in machine.check_timezone().said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root, where it may mount, has a disk to fill")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> None:
    with (place / "full").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


class TestFullDisk:
    def test_room_store_and_ledger_all_tell(self, small_disk: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("POTSTILL_HOME", str(small_disk))
        monkeypatch.delenv("POTSTILL_STORE", raising=False)
        monkeypatch.delenv("POTSTILL_LEDGER", raising=False)
        assert storage.check_store(small_disk).status == "ok"
        assert storage.check_ledger().status == "ok"
        fill(small_disk)
        disk = machine.check_disk(small_disk)
        assert disk.status == "fail"
        assert disk.remedy
        store = storage.check_store(small_disk)
        assert store.status == "fail"
        assert "No space left" in store.said
        assert not list(small_disk.glob(".doctor-*")), "nothing is left behind"
        [ledger] = examine([Check("ledger", storage.check_ledger, seconds=0.5)])  # SQLite waits for room for 30 s
        assert ledger.status == "fail"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "home"
    place.mkdir(mode=0o700)
    monkeypatch.setenv("POTSTILL_HOME", str(place))
    for name in ("POTSTILL_STORE", "POTSTILL_LEDGER", "POTSTILL_DATA_ROOTS", "POTSTILL_WEBHOOK_SECRETS"):
        monkeypatch.delenv(name, raising=False)
    return place


class TestStorage:
    def test_a_home_that_others_may_read_is_told(self, home: Path):
        assert storage.check_home(home).status == "ok"
        home.chmod(0o755)
        found = storage.check_home(home)
        assert (found.status, found.remedy) == ("warn", f"chmod 700 {home}")

    def test_a_store_is_written_read_and_left_as_it_was(self, home: Path):
        assert storage.check_store(home).status == "ok"
        assert list(home.iterdir()) == []

    def test_a_store_where_nothing_can_be_written_fails(self, home: Path):
        (home / "file").write_text("")
        assert storage.check_store(home / "file").status == "fail"

    @pytest.mark.flow
    def test_a_bucket_is_tried_and_left_as_it_was_but_for_the_object_of_conditions(
        self, home: Path, bucket: ObjectStore
    ):
        found = storage.check_store(home)
        assert found == ok("store", f"{bucket.address}: written, read and deleted, and conditions on PUT are honoured")
        assert set(bucket.names("")) == {"conditional-put"}

    @pytest.mark.flow
    def test_a_bucket_whose_server_ignores_conditions_fails_as_a_run_would(
        self, home: Path, bucket: ObjectStore, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
    ):
        with S3Proxy(s3_server) as proxy:
            proxy.manner = Manner.DEAF
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            monkeypatch.setenv("POTSTILL_STORE", f"{bucket.address}/deaf")  # of which this process knows nothing yet
            found = storage.check_store(home)
        assert found.status == "fail"
        assert "this server ignores IfNoneMatch on PUT" in found.said

    @pytest.mark.parametrize("address", ["gopher://bucket", "memory://bucket/prefix", "/a/directory"])
    def test_what_is_no_bucket_fails_as_a_run_would(self, home: Path, monkeypatch: pytest.MonkeyPatch, address: str):
        monkeypatch.setenv("POTSTILL_STORE", address)
        found = storage.check_store(home)
        assert found.status == "fail"
        assert f"POTSTILL_STORE={address}: not an address of a bucket" in found.said

    def test_a_ledger_opens_and_takes_writes(self, home: Path):
        found = storage.check_ledger()
        assert found.status == "ok"
        assert "schema version" in found.said

    @pytest.mark.parametrize("damage", ["garbage", "a later version"])
    def test_a_ledger_that_cannot_be_used_fails(self, home: Path, damage: str):
        storage.check_ledger()
        if damage == "garbage":
            for path in home.glob("ledger.db*"):
                path.unlink()
            (home / "ledger.db").write_bytes(os.urandom(8192))
        else:
            import sqlite3

            with sqlite3.connect(home / "ledger.db") as database:
                database.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
            database.close()
        [found] = examine([Check("ledger", storage.check_ledger)])
        assert found.status == "fail"
        assert "ledger" in found.said

    def test_a_ledger_whose_server_is_away_fails_within_the_time(self, home: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("POTSTILL_LEDGER", "postgresql://nobody:secret-pw@127.0.0.1:9/none")
        [found] = examine([Check("ledger", storage.check_ledger)])
        assert found.status == "fail"
        assert "secret-pw" not in found.said

    def test_roots_that_are_not_there_fail_and_none_is_a_warning(self, home: Path, monkeypatch: pytest.MonkeyPatch):
        assert one(storage.check_roots()).status == "warn"
        monkeypatch.setenv("POTSTILL_DATA_ROOTS", f"{home};{home}/gone;/")
        assert [found.status for found in storage.check_roots()] == ["ok", "fail", "warn"]
        monkeypatch.setenv("POTSTILL_DATA_ROOTS", f"{home};s3://bucket/x/")
        assert [found.said for found in storage.check_roots()] == [str(home), "s3://bucket/x, not looked at"]
        monkeypatch.setenv("POTSTILL_DATA_ROOTS", f"{home};https://host/x")
        [found] = examine([Check("data roots", storage.check_roots)])
        assert (found.status, "https://host/x: name an absolute directory" in found.said) == ("fail", True)

    def test_secrets_of_the_webhook_are_counted_and_never_shown(self, home: Path, monkeypatch: pytest.MonkeyPatch):
        assert storage.check_inbox(home).status == "warn"
        good, weak = (f"whsec_{base64.b64encode(bytes(length)).decode()}" for length in (32, 8))
        monkeypatch.setenv("POTSTILL_WEBHOOK_SECRETS", f"{good} {good}")
        found = storage.check_inbox(home)
        assert (found.status, "2 webhook secrets" in found.said) == ("ok", True)
        for bad in (weak, "whsec_not/base64!", "plain-secret-text", good.removeprefix("whsec_")):
            monkeypatch.setenv("POTSTILL_WEBHOOK_SECRETS", f"{good} {bad}")
            found = storage.check_inbox(home)
            assert found.status == "fail"
            assert "secret 2 of POTSTILL_WEBHOOK_SECRETS is not whsec_ and" in found.said
            assert bad not in str(found)
            with pytest.raises(UsageError):
                read_secrets()

    def test_what_is_made_on_the_way_is_private(self, home: Path):
        storage.check_store(home / "store")
        assert stat.S_ISDIR((home / "store").stat().st_mode)
