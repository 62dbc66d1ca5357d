"""A file is followed line by line: nothing twice, nothing in half, nothing lost."""

import pytest

from potstill.records import Row
from potstill.tail import Tail


class Number(Row):
    n: int


@pytest.fixture
def path(tmp_path):
    return tmp_path / "progress.jsonl"


def append(path, text):
    with path.open("a") as file:
        file.write(text)


def following(path):
    seen = []
    return Tail(path, Number, lambda row: seen.append(row.n)), seen


def test_each_line_is_handed_over_once_in_order(path):
    tail, seen = following(path)
    tail()  # the file is not there yet
    append(path, '{"n": 1}\n{"n": 2}\n')
    tail()
    tail()
    append(path, '{"n": 3}\n')
    tail()
    assert seen == [1, 2, 3]


def test_half_a_line_waits_for_its_other_half(path):
    tail, seen = following(path)
    append(path, '{"n": 1}\n{"n"')
    tail()
    assert seen == [1]
    append(path, ": 2}\n")
    tail()
    assert seen == [1, 2]


def test_what_an_earlier_run_left_is_not_told_again(path):
    append(path, '{"n": 1}\n')
    tail, seen = following(path)
    append(path, '{"n": 2}\n')
    tail()
    assert seen == [2]


def test_a_file_that_is_begun_anew_is_followed_from_its_start(path):
    append(path, '{"n": 100}\n{"n": 200}\n')
    tail, seen = following(path)
    path.write_text('{"n": 1}\n')
    tail()
    append(path, '{"n": 2}\n')
    tail()
    tail()
    assert seen == [1, 2]


def test_with_nobody_to_tell_the_file_is_not_read(path):
    append(path, "no JSON\n")
    Tail(path, Number, None)()
