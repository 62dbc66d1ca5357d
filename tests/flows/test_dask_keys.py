"""What goes over the wire to a Dask scheduler and its workers holds no key: they read it where they are."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

from tests.canary import Scanner
from tests.dask_processes import Stage, scheduler, workers
from tests.fake_teacher import UNAUTHORISED, FakeTeacher, make_teacher
from tests.postgres import PostgresServer

pytestmark = pytest.mark.flow

KEY = "sk-canary-7f3Qz-teacher-K9x"
PROMPTS = 40


class Wire:
    """Everything that passes to and from a scheduler."""

    def __init__(self, address: str) -> None:
        self._port = int(address.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self.passed = bytearray()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                with self._lock:
                    self.passed += data
                target.sendall(data)
        except OSError:
            pass
        finally:
            target.close()

    def close(self) -> None:
        self._listener.close()


@contextmanager
def tapped(address: str) -> Iterator[Wire]:
    wire = Wire(address)
    threading.Thread(target=wire.serve, daemon=True).start()
    try:
        yield wire
    finally:
        wire.close()


@pytest.mark.drill
def test_no_byte_on_the_wire_or_on_a_workers_disk_holds_the_key(
    tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__COMPRESSION", "False")
    prefect_url = PREFECT_API_URL.value()
    assert prefect_url is not None
    sent = {f"Bearer {KEY}"}

    def demand(asked):
        return None if asked.headers.get("authorization") in sent else UNAUTHORISED

    with FakeTeacher(demand, latency=0.02) as teacher, scheduler(tmp_path) as address, tapped(address) as wire:
        settings = make_teacher(teacher.url, model="model-on-the-wire", api_key_env="CANARY_KEY", batch_size=10)
        recipe = {
            "name": "wire",
            "task": {"kind": "extraction"},
            "curation": {"inputs": ["log.jsonl"]},
            "teacher": settings.model_dump(mode="json"),
            "student": {"base": "none"},
            "compute": {"teach": "dask"},
        }
        env = {
            "POTSTILL_DASK": wire.address,
            "POTSTILL_LEDGER": postgres.new_database(),
            "PREFECT_API_URL": prefect_url,
            "CANARY_KEY": KEY,
            "PREFECT_LOGGING_LEVEL": "DEBUG",
        }
        stage = Stage(tmp_path / "stage", recipe, PROMPTS, env)
        with workers(wire.address, stage, "one", "two"):
            stage.finish()
    assert len(teacher.requests) == PROMPTS
    assert {asked.status for asked in teacher.requests} == {200}
    assert b"model-on-the-wire" in wire.passed, "the recipe was seen as it passed"
    (tmp_path / "wire").write_bytes(wire.passed)
    scanner = Scanner(KEY)
    assert scanner.scan(tmp_path) == []
    assert len(wire.passed) > 100_000
