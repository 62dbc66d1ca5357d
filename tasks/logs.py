"""What Prefect's loggers say of errors, and of what is waited for."""

import logging
from collections.abc import Callable

from prefect.logging import get_run_logger

from potstill.errors import PotstillError


def without_tracebacks() -> None:
    """Prefect logs the traceback of everything that a task raises; what Potstill raises on purpose explains itself."""

    def shorten(record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], PotstillError):
            record.exc_info, record.exc_text = None, None
        return True

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(shorten)


def line_logger() -> Callable[[str], None]:
    """Logs lines in the task run that asks for it; the same is not said twice in a row."""
    logger, said = get_run_logger(), [""]

    def say(line: str) -> None:
        if line != said[0]:
            said[0] = line
            logger.info("%s", line)

    return say
