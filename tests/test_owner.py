"""Whether the owner of a claim still lives: only a sure death counts."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from potstill.owner import Owner, this_process


def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


def test_this_process_lives_and_knows_itself():
    owner = this_process()
    assert owner.pid == os.getpid()
    assert not owner.is_dead()
    assert Owner.model_validate_json(owner.model_dump_json()) == owner


def test_a_process_that_has_ended_is_dead():
    assert this_process().model_copy(update={"pid": gone()}).is_dead()


def test_a_later_process_with_the_same_pid_is_not_it():
    owner = this_process()
    assert owner.model_copy(update={"started_at": owner.started_at - 60}).is_dead()


@pytest.mark.parametrize("seconds", [2, -3600])
def test_a_clock_that_is_set_kills_nobody(set_clock, seconds):
    owner = this_process()
    assert owner.is_alive()
    set_clock(seconds)
    assert owner.is_alive()
    assert not owner.is_dead()


def test_of_an_owner_of_an_earlier_version_nobody_can_tell():
    """It had the boot and the PID namespace, and its start time by the clock."""
    old = " ".join(this_process().boot_id.split()[:2])
    owner = this_process().model_copy(update={"boot_id": old, "started_at": time.time()})
    assert (owner.is_dead(), owner.is_alive()) == (False, False)


def test_of_another_machine_nobody_can_tell_though_it_has_this_ones_name():
    boot = "another pid:[4026531836]"
    assert not this_process().model_copy(update={"boot_id": boot, "pid": gone()}).is_dead()
    assert not this_process().model_copy(update={"host": "another", "boot_id": boot, "pid": gone()}).is_dead()


def test_of_another_container_nobody_can_tell_though_it_has_this_ones_name_and_boot():
    here = this_process().boot_id
    there = here.replace(str(Path("/proc/self/ns/pid").readlink()), "pid:[1]")
    assert there != here
    assert not this_process().model_copy(update={"boot_id": there, "pid": gone()}).is_dead()


def test_where_the_system_names_no_boot_the_machines_name_counts(monkeypatch):
    monkeypatch.setattr("potstill.owner._boot_id", lambda: "")
    owner = this_process().model_copy(update={"boot_id": ""})
    assert not owner.is_dead()
    assert owner.model_copy(update={"pid": gone()}).is_dead()
    assert not owner.model_copy(update={"pid": gone(), "host": "another"}).is_dead()
