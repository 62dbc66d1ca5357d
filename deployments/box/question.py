"""A question whose answer may take long, or never come: asked in a thread, so that who wants to know never waits."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Question(Generic[T]):
    """Asked as often as somebody wants to know, once at a time."""

    def __init__(self, look: Callable[[], T]) -> None:
        self._look = look
        self._asked: Future[T] | None = None

    def ask(self) -> "Future[T] | None":
        """The answer, or what was raised in its place, given once; None until it is there. After it the next call asks anew."""
        if self._asked is None:
            self._asked = Future()
            # a daemon: the end of the process does not wait for an answer that never comes
            threading.Thread(target=self._find_out, args=(self._asked,), daemon=True).start()
        if not self._asked.done():
            return None
        answer, self._asked = self._asked, None
        return answer

    def _find_out(self, asked: "Future[T]") -> None:
        try:
            asked.set_result(self._look())
        except BaseException as error:  # noqa: BLE001 - raised where the answer is wanted
            asked.set_exception(error)
