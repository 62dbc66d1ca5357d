"""Whether the owner of a claim still lives: only a sure death counts."""

import os
import subprocess
import sys

from potstill.owner import Owner, this_process


def test_this_process_lives_and_knows_itself():
    owner = this_process()
    assert owner.pid == os.getpid()
    assert not owner.is_dead()
    assert Owner.model_validate_json(owner.model_dump_json()) == owner


def test_a_process_that_has_ended_is_dead():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    assert this_process().model_copy(update={"pid": process.pid}).is_dead()


def test_a_later_process_with_the_same_pid_is_not_it():
    owner = this_process()
    assert owner.model_copy(update={"started_at": owner.started_at - 60}).is_dead()


def test_everything_of_an_earlier_boot_is_dead():
    assert this_process().model_copy(update={"boot_id": "another"}).is_dead()


def test_of_another_machine_nobody_can_tell():
    assert not this_process().model_copy(update={"host": "another", "boot_id": "another", "pid": 1}).is_dead()
