"""How many requests are in flight at a teacher at once: counted there, and not told from when they came."""

import threading
import time


class InFlight:
    """`FakeTeacher(answer=in_flight.answer)`: answers wait until so many stand at once, and then for one more that must not come.

    Args:
        expected: how many there are to be.
        text: of every answer.
    """

    PATIENCE_SECONDS = 60.0
    """So long they wait for the last of them."""
    MORE_SECONDS = 0.3

    def __init__(self, expected: int, text: str) -> None:
        self.most = 0
        self._expected = expected
        self._text = text
        self._now = 0
        self._lock = threading.Lock()
        self._are_all_there = threading.Event()

    def answer(self, _: str) -> str:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            if self._now >= self._expected:
                self._are_all_there.set()
        self._are_all_there.wait(self.PATIENCE_SECONDS)
        time.sleep(self.MORE_SECONDS)
        with self._lock:
            self._now -= 1
        return self._text
