"""An event loop on which minutes pass in a moment, in the same way each time."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only, and at once, when nothing is left to do."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

        def advance(timeout: float | None) -> Any:
            assert timeout is not None, "everybody waits for ever"
            self._now += timeout
            return []

        self._selector.select = advance

    def time(self) -> float:
        return self._now


def run_virtually(make: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(make(loop))
    finally:
        loop.close()
