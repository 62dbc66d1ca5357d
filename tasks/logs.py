"""What Prefect's loggers say of an error."""

import logging

from potstill.errors import PotstillError


def without_tracebacks() -> None:
    """Prefect logs the traceback of everything that a task raises; what Potstill raises on purpose explains itself."""

    def shorten(record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], PotstillError):
            record.exc_info, record.exc_text = None, None
        return True

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(shorten)
