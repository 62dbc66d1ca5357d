"""The split depends on the group and the key, and on nothing else."""

from collections import Counter

import pytest

from potstill.curation.split import assign_split
from potstill.recipe import Curation

KNOWN = ["test", "validation", "train", "test", "train", "test", "test", "test", "test", "test"]
"""HMAC-SHA256 by hand: its first 16 hex digits over 2**64, against 0.4 and 0.6."""
GROUPS = [f"{number:032x}" for number in range(4000)]


def config(**values):
    return Curation(inputs=("in",), **values)


def splits(curation):
    return {group: assign_split(group, curation) for group in GROUPS}


def test_the_fractions_are_kept():
    counts = Counter(splits(config(validation_fraction=0.1, test_fraction=0.3)).values())
    assert counts["test"] / len(GROUPS) == pytest.approx(0.3, abs=0.03)
    assert counts["validation"] / len(GROUPS) == pytest.approx(0.1, abs=0.02)


def test_fractions_of_nothing_leave_all_for_training():
    assert set(splits(config(validation_fraction=0, test_fraction=0)).values()) == {"train"}


def test_it_is_the_same_on_every_machine_and_in_every_release():
    known = [assign_split(f"{number:032x}", config(validation_fraction=0.2, test_fraction=0.4)) for number in range(10)]
    assert known == KNOWN


def test_another_key_moves_prompts():
    assert splits(config(split_key="other")) != splits(config())


def test_a_larger_test_split_keeps_every_prompt_of_the_smaller():
    small, large = splits(config(test_fraction=0.1)), splits(config(test_fraction=0.4))
    assert all(large[group] == "test" for group in GROUPS if small[group] == "test")
