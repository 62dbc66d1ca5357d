"""Follows a JSONL file that another process writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from potstill.records import Row

R = TypeVar("R", bound=Row)


class Tail(Generic[R]):
    """Each call hands over the whole lines that came since the last one."""

    def __init__(self, path: Path, model: type[R], on_row: Callable[[R], None] | None) -> None:
        self._path = path
        self._model = model
        self._on_row = on_row
        self._offset = path.stat().st_size if path.exists() else 0

    def __call__(self) -> None:
        if self._on_row is None or not self._path.exists():
            return
        if self._offset > self._path.stat().st_size:
            self._offset = 0  # the file was begun anew
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._on_row(self._model.model_validate_json(line))
                self._offset += len(line)
