"""One process kept alive: when it is started, how often again, and what is said of it. The clock belongs to the test."""

import os
import signal
import threading
import time

import pytest

from deployments.box.watched import (
    LONGEST_DELAY_SECONDS,
    MAX_LOG_BYTES,
    STEADY_SECONDS,
    Process,
    Watched,
    bound_log,
)
from potstill.subprocesses import process_started_at
from tests.small_disk import small_disk

PATIENCE_SECONDS = 60.0


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(tmp_path, clock):
    """`watch(shell_command, **fields)`; whatever runs at the end is killed."""
    made = []

    def make(command, **fields):
        process = Process("one", ("/bin/sh", "-c", command), **fields)
        made.append(Watched(process, tmp_path / "one.log", clock))
        return made[-1]

    yield make
    for watched in made:
        watched.stop(grace_seconds=0)


@pytest.fixture
def hanging():
    """Set, it lets go on whoever waits for it."""
    event = threading.Event()
    yield event
    event.set()


def tick_until(watched, condition, may_start=True):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while watched.condition != condition:
        watched.tick(may_start=may_start)
        assert time.monotonic() < deadline, f"{watched.kept()}"
        time.sleep(0.01)
    return watched.kept()


def test_it_is_up_once_it_answers(watch):
    is_open = []
    watched = watch("sleep 60", answers=lambda started_at: abs(started_at - time.time()) < 10 and bool(is_open))
    for _ in range(3):
        watched.tick(may_start=True)
    assert watched.condition == "starting"
    is_open.append(True)
    kept = tick_until(watched, "up")
    assert kept.pid
    assert kept.started_at == process_started_at(kept.pid)


def test_it_waits_for_what_comes_before_it(watch):
    watched = watch("sleep 60")
    watched.tick(may_start=False)
    assert watched.kept().condition == "waiting"
    assert watched.kept().pid is None
    tick_until(watched, "up")


def test_it_is_off_while_something_is_lacking_and_starts_by_itself_once_it_is_there(watch, clock):
    lacking = ["nothing is released yet"]
    watched = watch("sleep 60", lacks=lambda: lacking[0] if lacking else None)
    assert tick_until(watched, "off").remark == "nothing is released yet"
    lacking.clear()
    clock.now += 5
    tick_until(watched, "up")


def test_nobody_waits_for_a_look_that_hangs_and_its_answer_counts_once_it_comes(watch, hanging):
    watched = watch("sleep 60", lacks=lambda: hanging.wait(PATIENCE_SECONDS) and None)
    for _ in range(3):
        watched.tick(may_start=True)
    assert (watched.condition, watched.kept().pid) == ("waiting", None)
    assert "it is looked whether" in watched.kept().remark
    hanging.set()
    assert tick_until(watched, "up").remark == ""


def test_nobody_waits_for_a_server_that_never_answers(watch, hanging):
    watched = watch("sleep 60", answers=lambda _: hanging.wait(PATIENCE_SECONDS))
    for _ in range(3):
        watched.tick(may_start=True)
    assert watched.condition == "starting"
    hanging.set()
    tick_until(watched, "up")


def test_an_answer_that_comes_after_a_death_is_not_its_successors(watch, clock, hanging):
    asked = []

    def answers(born_at):
        asked.append(born_at)
        return len(asked) == 1 and hanging.wait(PATIENCE_SECONDS)

    watched = watch("sleep 60", answers=answers)
    tick_until(watched, "starting")
    watched.tick(may_start=True)
    watched._signal(signal.SIGKILL)
    tick_until(watched, "restarting")
    clock.now += 1
    tick_until(watched, "starting")
    hanging.set()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(asked) < 3:
        watched.tick(may_start=True)
        assert time.monotonic() < deadline
    assert watched.condition == "starting"


def test_what_a_look_raises_is_raised_to_who_looks_after_it_and_it_is_looked_again(watch):
    troubles = [OSError("the disk is gone")]
    watched = watch("sleep 60", lacks=lambda: _raise(troubles.pop()) if troubles else None)
    with pytest.raises(OSError, match="the disk is gone"):
        tick_until(watched, "up")
    tick_until(watched, "up")


def _raise(error):
    raise error


def test_killed_it_is_started_again_a_second_later(watch, clock):
    watched = watch("sleep 60")
    first = tick_until(watched, "up")
    clock.now += STEADY_SECONDS + 1
    watched.tick(may_start=True)
    watched._signal(signal.SIGKILL)
    kept = tick_until(watched, "restarting")
    assert "killed by SIGKILL" in kept.remark
    watched.tick(may_start=True)
    assert watched.condition == "restarting"
    clock.now += 1
    again = tick_until(watched, "up")
    assert again.pid != first.pid
    assert again.num_restarts == 1


def test_what_dies_at_once_is_started_ever_more_slowly_and_said_to_be_failing_with_its_last_words(watch, clock):
    watched = watch("echo no room >&2; exit 3")
    waits = []
    for _ in range(9):
        tick_until(watched, "starting")
        while watched.condition == "starting" or watched.condition == "up":
            watched.tick(may_start=True)
        before = clock.now
        while watched.condition in {"restarting", "failing"}:
            clock.now += 1
            watched.tick(may_start=True)
        waits.append(clock.now - before)
    assert waits == [1, 2, 4, 8, 16, 32, LONGEST_DELAY_SECONDS, LONGEST_DELAY_SECONDS, LONGEST_DELAY_SECONDS]
    kept = tick_until(watched, "failing")
    assert kept.remark == "ended with status 3: no room"
    assert kept.num_restarts == 10


def test_once_it_has_lived_long_the_count_begins_anew(watch, clock):
    watched = watch("sleep 60")
    for _ in range(5):
        tick_until(watched, "up")
        clock.now += STEADY_SECONDS + 1
        watched._signal(signal.SIGKILL)
        tick_until(watched, "restarting")
        clock.now += 1


def test_a_step_is_done_with_status_0_and_not_started_again(watch, clock):
    watched = watch("exit 0", is_step=True)
    assert tick_until(watched, "done").remark == ""
    clock.now += 1000
    watched.tick(may_start=True)
    assert (watched.condition, watched.kept().pid) == ("done", None)


def test_a_step_that_fails_is_tried_again(watch, clock, tmp_path):
    watched = watch(f"test -e {tmp_path}/there || exit 1", is_step=True)
    tick_until(watched, "restarting")
    (tmp_path / "there").touch()
    clock.now += 1
    tick_until(watched, "done")


def test_a_program_that_is_not_there_is_said_and_tried_again(tmp_path, clock):
    watched = Watched(Process("one", (str(tmp_path / "missing"),)), tmp_path / "one.log", clock)
    watched.tick(may_start=True)
    assert watched.condition == "restarting"
    assert "missing" in watched.kept().remark


def test_a_log_is_bounded_while_its_process_writes_on(watch, tmp_path):
    script = f"head -c {MAX_LOG_BYTES + 1} /dev/zero; echo before; read line < {tmp_path}/pipe; echo after"
    log = tmp_path / "one.log"
    os.mkfifo(tmp_path / "pipe")
    watched = watch(script)
    watched.tick(may_start=True)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (log.exists() and log.stat().st_size > MAX_LOG_BYTES + 6):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    watched.bound_log()
    assert log.stat().st_size == 0
    assert (tmp_path / "one.log.1").read_bytes().endswith(b"before\n")
    (tmp_path / "pipe").write_text("go\n")
    while not log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert log.read_text() == "after\n"


def test_on_a_full_disk_a_log_is_emptied_and_the_part_that_finds_room_is_kept(tmp_path):
    with small_disk(tmp_path, mebibytes=8):
        log, older = tmp_path / "one.log", tmp_path / "one.log.1"
        log.write_bytes(b"x" * (MAX_LOG_BYTES + 1))
        bound_log(log)
        assert log.stat().st_size == 0
        assert 0 < older.stat().st_size < MAX_LOG_BYTES


def test_a_log_that_has_no_place_for_its_copy_is_emptied(tmp_path):
    log = tmp_path / "one.log"
    log.write_bytes(b"x" * (MAX_LOG_BYTES + 1))
    (tmp_path / "one.log.1").mkdir()
    bound_log(log)
    assert log.stat().st_size == 0
