"""What the log of a run by hand says of errors: no traceback of what was raised on purpose, each once, no crash by Ctrl-C."""

import logging
from collections.abc import Iterator

import pytest

from potstill.errors import BudgetReachedError
from tasks.logs import quiet_logs

pytestmark = pytest.mark.flow


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("prefect.task_runs")
    others = logging.getLogger("prefect.flow_runs")
    before = [(one, list(one.filters)) for one in (logger, others)]
    quiet_logs()
    yield logger
    for one, filters in before:
        one.filters[:] = filters


def log(logger: logging.Logger, message: str, error: BaseException | None = None) -> logging.LogRecord | None:
    info = (type(error), error, None) if error else None
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 1, message, (), info)
    return record if logger.filter(record) else None


def test_an_error_that_many_tasks_end_with_is_told_once_and_without_a_traceback(logger: logging.Logger) -> None:
    first = log(logger, "the cap of 1 USD is reached", BudgetReachedError("x"))
    assert first is not None
    assert first.exc_info is None
    assert log(logger, "the cap of 1 USD is reached", BudgetReachedError("x")) is None
    assert log(logger, "another error") is not None


def test_an_error_that_nobody_foresaw_keeps_its_traceback(logger: logging.Logger) -> None:
    record = log(logger, "broken", KeyError("x"))
    assert record is not None
    assert record.exc_info is not None


def test_an_interrupt_is_no_crash(logger: logging.Logger) -> None:
    record = log(logger, "Crash detected! Execution was aborted by an interrupt signal.")
    assert record is not None
    assert (record.getMessage(), record.levelname) == ("Interrupted", "WARNING")
