"""pins/<name>.json: a small text that stays what it was when it was first asked for, in the bucket where there is one."""

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from potstill.artifacts.disk import write_atomically
from potstill.object_store import ObjectStore


class Pins:
    """The pins of a store, below its directory or in its bucket. Errors: those of `ObjectStore`."""

    def __init__(self, root: Path, remote: ObjectStore | None) -> None:
        self._root = root
        self._remote = remote

    def read(self, name: str) -> str | None:
        """What is pinned under a name; None where nothing is."""
        if self._remote is not None:
            blob = self._remote.read(_file(name))
            return None if blob is None else blob.content.decode()
        try:
            return (self._root / _file(name)).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def keep(self, name: str, find: Callable[[], str]) -> str:
        """What is pinned under a name, else what `find` finds, pinned. Of two who find at once, both get what the first one pinned."""
        if (known := self.read(name)) is not None:
            return known
        self._add(name, found := find())
        known = self.read(name)
        return found if known is None else known

    def _add(self, name: str, text: str) -> None:
        """Pin a text, unless another was faster."""
        if self._remote is not None:
            self._remote.replace(_file(name), text.encode(), None)
            return
        lock = self._root / "locks" / "pins.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if self.read(name) is None:
                write_atomically(self._root / _file(name), text)


def _file(name: str) -> str:
    return f"pins/{name}.json"
