"""What lies behind a connection that failed."""

import errno
import os
import socket
import ssl
from collections.abc import Iterator


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that it came from, the operating system's own included."""
    while error is not None:
        yield error
        if (inner := getattr(error, "os_error", None)) is not None:
            yield inner
        error = error.__cause__ or error.__context__


def is_unknown_host(error: BaseException, *, was_known: bool) -> bool:
    """Whether a host has no address. Of one that has had one, only where the resolver says so for certain."""
    found = [cause for cause in causes(error) if isinstance(cause, socket.gaierror)]
    return any(not was_known or cause.errno != socket.EAI_AGAIN for cause in found)


def why_unconnected(error: BaseException) -> str | None:
    """The system's words for a connection that was not made, such as `connection refused`; None where it has none."""
    inner = getattr(error, "os_error", None)
    number = inner.errno if isinstance(inner, OSError) and not isinstance(inner, ssl.SSLError) else None
    if number is None or number not in errno.errorcode:
        return None
    said = os.strerror(number)
    return said[:1].lower() + said[1:]
