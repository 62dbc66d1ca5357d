import pytest

from bench.fast_teacher.log import BLOCK_LINES, Logged, LoggedRequests, LogWriter, read_log

ROWS = [
    Logged(10.0, "#1", 200, "", 10, 5, 1),
    Logged(10.5, "#2", 200, "empty", 10, 6, 1),
    Logged(11.0, "#2", 429, "limiter", 0, 0, 2),
    Logged(11.5, "#2", 0, "reset", 10, 7, 2),
    Logged(12.0, "#2", 200, "", 10, 8, 3),
    Logged(12.5, "#1", 200, "", 10, 5, 2),
    Logged(13.0, "#3", 503, "503", 0, 0, 1),
]


def test_what_was_written_is_read_again(tmp_path):
    path = tmp_path / "log"
    writer = LogWriter(path)
    for row in ROWS:
        writer.add(row)
    writer.flush()
    assert read_log(path) == LoggedRequests(ROWS)


def test_lines_are_written_in_blocks_and_closing_leaves_none_behind(tmp_path):
    path = tmp_path / "log"
    writer = LogWriter(path)
    for _ in range(BLOCK_LINES + 1):
        writer.add(ROWS[0])
    assert len(read_log(path).requests) == BLOCK_LINES
    writer.close()
    assert len(read_log(path).requests) == BLOCK_LINES + 1


def test_a_line_that_is_none_is_an_error(tmp_path):
    (tmp_path / "log").write_text("10.0\t#1\t200")
    with pytest.raises(ValueError, match="unpack"):
        read_log(tmp_path / "log")


def test_a_log_says_what_was_answered_billed_twice_and_wasted():
    log = LoggedRequests(ROWS)
    assert log.answered() == {"#1", "#2"}
    assert log.billed_twice() == 3
    assert log.billed_twice(wanted=2) == 1
    assert log.answered_twice() == 1
    assert log.billed_and_unusable() == 2
    assert log.tokens() == (50, 31)
    assert log.faults() == {"empty": 1, "limiter": 1, "reset": 1, "503": 1}
    assert log.span_seconds() == 3.0
    assert log.since(12.0).answered() == {"#1", "#2"}
    assert log.since(12.1).answered() == {"#1"}


def test_an_empty_log_says_nothing():
    log = LoggedRequests([])
    assert (log.answered(), log.billed_twice(), log.tokens(), log.span_seconds()) == (set(), 0, (0, 0), 0.0)
