"""What Prefect's loggers say of errors, and of what is waited for."""

import logging
import re
from collections.abc import Callable

from prefect.logging import get_run_logger

from potstill.errors import PotstillError

INTERRUPTED = re.compile(r"Crash detected! Execution was (aborted by an interrupt|cancelled)")


def quiet_logs() -> None:
    """Of a run by hand: what Potstill raises on purpose needs no traceback, a Ctrl-C is no crash, and each error is told once.

    Many batches end with one error, such as a budget that is reached.
    """
    told: set[str] = set()

    def shorten(record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], PotstillError):
            record.exc_info, record.exc_text = None, None
        if INTERRUPTED.match(record.getMessage()):
            record.msg, record.args = "Interrupted", ()
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        said = record.getMessage()
        is_repeated = record.levelno >= logging.ERROR and said in told
        told.add(said)
        return not is_repeated

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
