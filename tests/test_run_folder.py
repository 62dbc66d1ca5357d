"""A run folder under real children: what they say counts, whoever holds the lock in vain is ended."""

import json
import subprocess
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from potstill.artifacts import write_atomically
from potstill.errors import DataError, SubprocessError
from potstill.owner import Owner, this_process
from potstill.records import Row
from potstill.run_folder import ChildStatus, RunFolder
from potstill.subprocesses import process_started_at

pytestmark = pytest.mark.flow

PATIENCE_SECONDS = 20.0

CHILD = """
import json, os, pathlib, signal, sys, time
from potstill import run_folder
from potstill.errors import ArtifactMissingError, DataError

run_folder.ORPHAN_SECONDS = 0.3
spec_path = pathlib.Path(sys.argv[1])
spec = json.loads(spec_path.read_text())

class Status(run_folder.ChildStatus):
    answer: int = 0

def do():
    (spec_path.parent / "started").write_text(str(os.getpid()))
    exec(spec["code"])
    return Status(answer=42)

run_folder.RunFolder(spec_path.parent).work(do)
"""


class Spec(Row):
    code: str = ""


class Status(ChildStatus):
    answer: int = 0


class Run(RunFolder):
    """A run folder whose child runs the code of its spec."""

    def __init__(self, path: Path, child: Path) -> None:
        super().__init__(path)
        self.child = child
        self.started = path / "started"

    def go(self, code: str = "", **more: Any) -> Status:
        return self.launch((str(self.child),), Spec(code=code), Status, **more)

    def start_orphan(self) -> subprocess.Popen[bytes]:
        """A child that does not notice that its parent is gone, as its standard input stays open."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.spec.write_text(Spec(code="time.sleep(60)").model_dump_json())
        orphan = subprocess.Popen(
            [sys.executable, self.child, self.spec], stdin=subprocess.PIPE, start_new_session=True
        )
        self.await_start()
        return orphan

    def await_start(self) -> int:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if self.started.exists() and (text := self.started.read_text()):
                return int(text)
            time.sleep(0.02)
        raise AssertionError("the child never began")


@pytest.fixture
def run(tmp_path):
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    return Run(tmp_path / "runs" / "one", child)


class TestLaunch:
    def test_the_child_gets_its_spec_and_says_how_it_ended(self, run):
        ticks = []
        assert run.go(on_tick=lambda: ticks.append(1)) == Status(answer=42)
        assert len(ticks) > 1
        assert json.loads(run.status.read_text())["answer"] == 42
        assert json.loads(run.spec.read_text()) == {"code": ""}
        assert not process_started_at(int(run.started.read_text()))

    def test_the_folder_outlives_the_run_and_the_log_is_kept(self, run):
        run.go("print('first'); (spec_path.parent / 'checkpoint').write_text('1')")
        run.go("print('second', (spec_path.parent / 'checkpoint').read_text())")
        assert run.log.read_text().splitlines() == ["first", "second 1"]

    def test_a_fault_of_the_data_is_a_data_error_with_the_childs_reason(self, run):
        with pytest.raises(DataError, match=r"child\.py failed: no example in it: bring more \(log: .*child\.log\)"):
            run.go("raise DataError('no example in it: bring more')")

    def test_another_error_of_ours_may_be_tried_again(self, run):
        with pytest.raises(SubprocessError, match=r"failed: gone: run again \(log"):
            run.go("raise ArtifactMissingError('gone: run again')")

    def test_an_unforeseen_error_is_named_and_its_traceback_is_in_the_log(self, run):
        with pytest.raises(SubprocessError, match=r"failed: ZeroDivisionError: division by zero \(log"):
            run.go("1 / 0")
        assert "Traceback" in run.log.read_text()

    def test_a_child_that_is_killed_said_nothing_and_its_last_line_is_quoted(self, run):
        with pytest.raises(SubprocessError, match=r"ended with status -9 and said nothing: out of memory \(log: "):
            run.go("print('out of memory', flush=True); os.kill(os.getpid(), signal.SIGKILL)")

    def test_the_status_of_an_earlier_run_is_not_believed(self, run):
        run.go()
        with pytest.raises(SubprocessError, match="said nothing"):
            run.go("os._exit(0)")

    @pytest.mark.parametrize(
        ("exit_status", "code", "ends"),
        [(7, "", nullcontext()), (0, "raise DataError('bad rows')", pytest.raises(DataError, match="bad rows"))],
    )
    def test_the_status_file_decides_whatever_a_launcher_exits_with(self, run, tmp_path, exit_status, code, ends):
        launcher = tmp_path / "launcher.py"
        launcher.write_text(
            f"import subprocess, sys; subprocess.run([sys.executable, {str(run.child)!r}, *sys.argv[1:]])\n"
            f"sys.exit({exit_status})"
        )
        run.child = launcher
        with ends:
            assert run.go(code).answer == 42

    def test_a_thread_of_a_library_keeps_no_finished_child_alive(self, run):
        code = "import threading; threading.Thread(target=time.sleep, args=(60,)).start()"
        started = time.monotonic()
        assert run.go(code).answer == 42
        assert time.monotonic() - started < PATIENCE_SECONDS


class TestOrphans:
    def test_an_orphan_that_holds_the_lock_is_ended(self, run):
        orphan = run.start_orphan()
        owner = Owner.model_validate_json((run.path / "owner.json").read_bytes())
        assert owner.pid == orphan.pid
        assert not owner.is_dead()
        assert run.go().answer == 42
        assert orphan.wait(PATIENCE_SECONDS) != 0
        assert owner.is_dead()
        assert f"ending orphan {orphan.pid}" in run.log.read_text()

    def test_of_a_holder_elsewhere_no_process_here_is_ended(self, run, monkeypatch):
        """A container that shares the folder has numbers of its own."""
        monkeypatch.setattr("potstill.run_folder.ORPHAN_SECONDS", 0.1)
        stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        try:
            run.path.mkdir(parents=True)
            now = {"pid": stranger.pid, "started_at": process_started_at(stranger.pid)}
            (run.path / "owner.json").write_text(
                this_process().model_copy(update={"boot_id": "another", **now}).model_dump_json()
            )
            with FileLock(run.path / "run.lock"), pytest.raises(Timeout):
                run._claim()
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()

    def test_one_that_ends_by_itself_is_waited_for(self, run):
        """The usual case: the pipe of its dead parent closes while the new child waits for the lock."""
        orphan = run.start_orphan()
        assert orphan.stdin is not None
        orphan.stdin.close()
        assert run.go().answer == 42
        assert "orphan" not in run.log.read_text()
        orphan.wait()

    def test_the_child_dies_when_its_parent_is_killed_and_the_next_run_goes_on(self, run):
        parent = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from pathlib import Path\n"
                "from potstill.records import Row; from potstill.run_folder import ChildStatus, RunFolder\n"
                "class Spec(Row):\n    code: str\n"
                "RunFolder(Path(sys.argv[1])).launch((sys.argv[2],), Spec(code='time.sleep(60)'), ChildStatus)",
                run.path,
                run.child,
            ]
        )
        child = run.await_start()
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while process_started_at(child) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not run.status.exists()
        assert run.go().answer == 42


def test_a_reader_sees_no_status_or_a_whole_one_never_a_part(tmp_path):
    """Read as fast as it goes, while it is written as fast as it goes."""
    path = tmp_path / "status.json"
    statuses = [ChildStatus(state="failed", error=letter * 200_000).model_dump_json() for letter in "ab"]
    over = threading.Event()

    def write() -> None:
        for number in range(150):
            write_atomically(path, statuses[number % 2])
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not over.is_set():
        with suppress(FileNotFoundError):
            error = ChildStatus.model_validate_json(path.read_bytes()).error
            assert error is not None
            assert error == error[0] * 200_000
            seen.add(error[0])
    writer.join()
    assert seen == {"a", "b"}
