"""Real processes: none outlives its parent, and a stop reaches every one of a group."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from potstill.errors import SubprocessError
from potstill.subprocesses import PARENT_GONE, Child, end_process, process_started_at, run_child

pytestmark = pytest.mark.flow

PATIENCE_SECONDS = 15.0

SAY_PID = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); "
WATCHING = "from potstill.subprocesses import exit_with_parent; exit_with_parent(); " + SAY_PID + "time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SAY_PID + "time.sleep(60)"


def python(code, *arguments):
    return [sys.executable, "-c", code, *map(str, arguments)]


def eventually(condition, seconds=PATIENCE_SECONDS):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


def written_pid(path):
    """The pid that a process wrote into a file, once it is there."""
    return int(eventually(lambda: path.exists() and path.read_text()))


def is_gone(pid):
    return process_started_at(pid) is None


@pytest.fixture
def pids(tmp_path):
    """Paths for the pids of what a test starts; whatever is left of it at the end is killed."""
    paths = []

    def path(name):
        paths.append(tmp_path / name)
        return paths[-1]

    yield path
    for path in paths:
        if path.exists() and path.read_text():
            with suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)


class TestParentGone:
    PARENT = "import sys, time; from potstill.subprocesses import Child; Child(sys.argv[1:]); print('up', flush=True); "

    def start_parent(self, command, ending="time.sleep(60)"):
        parent = subprocess.Popen(python(self.PARENT + ending, *command), stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        return parent

    def test_the_child_dies_when_its_parent_is_killed(self, pids):
        parent = self.start_parent(python(WATCHING, pids("child")))
        child = written_pid(pids("child"))
        assert not is_gone(child)
        parent.kill()
        eventually(lambda: is_gone(child))
        parent.communicate()

    def test_so_does_what_a_launcher_between_them_started(self, pids):
        """As `accelerate launch` does: the launcher hands its standard input on, and knows nothing of the parent."""
        launcher = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[2:]]); "
        command = python(SAY_PID + launcher, pids("launcher"), WATCHING, pids("child"))
        parent = self.start_parent(command)
        processes = [written_pid(pids("launcher")), written_pid(pids("child"))]
        parent.kill()
        eventually(lambda: all(map(is_gone, processes)))
        parent.communicate()

    def test_so_does_it_when_the_parent_just_ends(self, pids):
        its_child_is_up = "any(time.sleep(0.05) or open(sys.argv[-1], 'a+').tell() for _ in range(400)); "
        parent = self.start_parent(python(WATCHING, pids("child")), ending=its_child_is_up + "sys.exit(3)")
        child = written_pid(pids("child"))
        eventually(lambda: is_gone(child))
        parent.communicate()
        assert parent.returncode == 3

    def test_its_exit_status_says_that_it_may_be_started_again(self, pids):
        child = subprocess.Popen(python(WATCHING, pids("child")), stdin=subprocess.PIPE)
        written_pid(pids("child"))
        assert child.poll() is None
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(PATIENCE_SECONDS) == PARENT_GONE


class TestStop:
    def test_it_ends_the_whole_group_even_what_ignores_the_polite_signal(self, pids):
        family = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[2:]]); "
        child = Child(python(SAY_PID + family + "time.sleep(60)", pids("child"), STUBBORN, pids("grandchild")))
        processes = [written_pid(pids("child")), written_pid(pids("grandchild"))]
        assert child.pid == processes[0]
        child.stop(grace_seconds=PATIENCE_SECONDS)
        eventually(lambda: all(map(is_gone, processes)))

    def test_what_does_not_go_within_the_grace_is_killed(self, pids):
        child = Child(python(STUBBORN, pids("child")))
        written_pid(pids("child"))
        started = time.monotonic()
        child.stop(grace_seconds=0.3)
        assert time.monotonic() - started >= 0.3
        assert child.poll() == -signal.SIGKILL

    def test_a_child_may_use_the_grace_to_save(self, pids, tmp_path):
        saving = (
            "import signal, sys, time\n"
            "def save(*_):\n    time.sleep(0.2); open(sys.argv[2], 'w').write('saved'); sys.exit(0)\n"
            "signal.signal(signal.SIGTERM, save)\n"
        )
        child = Child(python(saving + SAY_PID + "time.sleep(60)", pids("child"), tmp_path / "checkpoint"))
        written_pid(pids("child"))
        child.stop(grace_seconds=PATIENCE_SECONDS)
        assert child.poll() == 0
        assert (tmp_path / "checkpoint").read_text() == "saved"

    def test_it_may_be_called_on_one_that_is_over(self):
        child = Child(python("pass"))
        assert child.wait() == 0
        child.stop()
        child.stop()


class TestWait:
    def test_it_ticks_while_the_child_runs_and_once_after_its_end(self):
        states = []
        child = Child(python("import time; time.sleep(0.3)"))
        assert child.wait(lambda: states.append(child.poll()), tick_seconds=0.05) == 0
        assert len(states) > 2
        assert states[0] is None
        assert states[-1] == 0

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_whatever_goes_wrong_while_waiting_ends_the_child(self, pids, error):
        child = Child(python(SAY_PID + "time.sleep(60)", pids("child")))
        written_pid(pids("child"))

        def tick():
            raise error

        with pytest.raises(error):
            child.wait(tick)
        assert is_gone(child.pid)


class TestRunChild:
    def test_it_inherits_the_environment_but_no_key_of_a_teacher(self, tmp_path, monkeypatch):
        for name in ("OPENAI_API_KEY", "MY_KEY", "HARMLESS"):
            monkeypatch.setenv(name, f"value of {name}")
        monkeypatch.setenv("POTSTILL_KEY_HOSTS", "MY_KEY=llm.example")
        log = tmp_path / "log"
        run_child(python("import os; print(dict(os.environ))"), log_path=log)
        assert "value of HARMLESS" in log.read_text()
        assert "value of OPENAI_API_KEY" not in log.read_text()
        assert "value of MY_KEY" not in log.read_text()

    def test_its_output_goes_to_the_log_after_what_was_there(self, tmp_path):
        log = tmp_path / "logs" / "child.log"
        for number in (1, 2):
            run_child(python(f"import sys; print({number}); print('e{number}', file=sys.stderr)"), log_path=log)
        assert sorted(log.read_text().split()) == ["1", "2", "e1", "e2"]

    def test_a_failure_names_status_log_and_last_line(self, tmp_path):
        log = tmp_path / "child.log"
        with pytest.raises(SubprocessError) as caught:
            run_child(python("import sys; print('first'); print('no space left'); sys.exit(3)"), log_path=log)
        assert str(caught.value).endswith(f"ended with status 3 (log: {log}): no space left")

    def test_a_failure_without_a_word_says_so(self):
        with pytest.raises(SubprocessError, match=r"ended with status 1: no output$"):
            run_child(python("raise SystemExit(1)"))

    def test_the_log_tail_bears_bytes_that_are_no_text(self, tmp_path):
        child = Child(python("import os; os.write(1, b'a\\n\\xff\\n')"), log_path=tmp_path / "child.log")
        assert child.wait() == 0
        assert child.log_tail() == "a\n\ufffd"
        assert child.log_tail(1) == "\ufffd"


class TestProcessIdentity:
    def test_a_running_process_has_its_start_time(self):
        process = subprocess.Popen(python("import time; time.sleep(60)"))
        started = process_started_at(process.pid)
        assert started is not None
        assert abs(started - time.clock_gettime(time.CLOCK_BOOTTIME)) < 5
        process.kill()
        process.wait()
        assert process_started_at(process.pid) is None

    def test_a_zombie_does_not_run(self):
        process = subprocess.Popen(python("pass"))
        eventually(lambda: is_gone(process.pid), seconds=10)  # nobody has waited for it yet
        assert process.wait() == 0

    def test_end_process_ends_the_group_of_the_one_that_is_named(self, pids):
        child = Child(python(STUBBORN, pids("child")))
        pid = written_pid(pids("child"))
        started = process_started_at(pid)
        assert started is not None
        assert end_process(pid, started, grace_seconds=0.3)
        assert is_gone(pid)
        assert child.poll() == -signal.SIGKILL

    def test_it_ends_its_own_after_the_clock_was_set(self, set_clock):
        child = Child(python("import time; time.sleep(60)"))
        started = process_started_at(child.pid)
        assert started is not None
        set_clock(3600)
        assert end_process(child.pid, started, grace_seconds=0.3)
        assert child.poll() is not None

    def test_another_process_with_the_same_pid_is_let_alone(self):
        child = Child(python("import time; time.sleep(60)"))
        started = process_started_at(child.pid)
        assert started is not None
        assert not end_process(child.pid, started - 100)
        assert child.poll() is None
        child.stop()

    def test_one_that_is_gone_is_no_error(self):
        child = Child(python("pass"))
        child.wait()
        assert not end_process(child.pid, time.time())
