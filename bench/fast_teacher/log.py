"""The log of the fake teacher: one line a request, written in blocks; and what a log says of the run that made it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

BLOCK_LINES = 2000
LIMITER = "limiter"
"""The fault of a request for which the rate limit had no room."""


class Logged(NamedTuple):
    """One request that was served; what is billed is billed at its arrival."""

    at: float
    """When it arrived, as seconds since 1970."""
    mark: str
    status: int
    """0 where the connection was reset in place of a reply."""
    fault: str
    """"" for an answer."""
    input_tokens: int
    output_tokens: int
    """Both 0 where nothing is billed."""
    attempt: int
    """Number of this attempt of its mark, from 1; a request that the limiter refused has the number of the next one."""

    @property
    def is_billed(self) -> bool:
        return self.output_tokens > 0 or self.input_tokens > 0


class LogWriter:
    """Appends lines to a file, some thousands at once; `flush` and `close` leave none behind."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._lines: list[str] = []

    def add(self, row: Logged) -> None:
        at, mark, status, fault, given, taken, attempt = row
        self._lines.append(f"{at:.6f}\t{mark}\t{status}\t{fault}\t{given}\t{taken}\t{attempt}\n")
        if len(self._lines) >= BLOCK_LINES:
            self.flush()

    def flush(self) -> None:
        block = memoryview("".join(self._lines).encode())
        self._lines.clear()
        while block:
            block = block[self._file.write(block) :]

    def close(self) -> None:
        self.flush()
        self._file.close()


class LoggedRequests(NamedTuple):
    """All that a teacher served, in the order of arrival."""

    requests: Sequence[Logged]

    def since(self, at: float) -> "LoggedRequests":
        """Those that arrived from that time on."""
        return LoggedRequests([row for row in self.requests if row.at >= at])

    def answered(self) -> set[str]:
        """The marks for which a good answer went out."""
        return {row.mark for row in self.requests if row.status == 200 and not row.fault}

    def billed_twice(self, wanted: int = 1) -> int:
        """Billed replies beyond the first `wanted` of each mark, useless ones among them."""
        billed = Counter(row.mark for row in self.requests if row.is_billed)
        return sum(max(0, count - wanted) for count in billed.values())

    def answered_twice(self, wanted: int = 1) -> int:
        """Good answers beyond the first `wanted` of each mark: what nobody needed to pay for."""
        good = Counter(row.mark for row in self.requests if row.status == 200 and not row.fault)
        return sum(max(0, count - wanted) for count in good.values())

    def billed_and_unusable(self) -> int:
        """Billed replies that hold no answer: malformed ones, and those that were lost with their connection."""
        return sum(1 for row in self.requests if row.is_billed and row.fault)

    def tokens(self) -> tuple[int, int]:
        """Input and output tokens billed, over all replies."""
        return sum(row.input_tokens for row in self.requests), sum(row.output_tokens for row in self.requests)

    def faults(self) -> Counter[str]:
        return Counter(row.fault for row in self.requests if row.fault)

    def span_seconds(self) -> float:
        """From the first arrival to the last."""
        return self.requests[-1].at - self.requests[0].at if self.requests else 0.0


def read_log(path: Path) -> LoggedRequests:
    """The log as far as it is written. Errors: `ValueError` for a line that is none."""
    return LoggedRequests([_parse(line) for line in path.read_text().splitlines()])


def _parse(line: str) -> Logged:
    at, mark, status, fault, given, taken, attempt = line.split("\t")
    return Logged(float(at), mark, int(status), fault, int(given), int(taken), int(attempt))
