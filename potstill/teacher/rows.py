"""The prompts that a teacher is to answer, left on disk: only those that are being asked are in memory."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from potstill.artifacts import ArtifactRef
from potstill.fingerprint import fingerprint
from potstill.records import Prompt, count_parquet, read_parquet

PROMPTS = "prompts.parquet"


class InputRow(NamedTuple):
    """One row of the input; two rows may hold the same prompt, which is asked once."""

    row_id: str
    prompt: Prompt


class Rows(Protocol):
    """The rows of an input, in its order."""

    @property
    def digest(self) -> str:
        """Names their content."""
        ...

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Iterator[InputRow]:
        """Those from `start` to before `stop`."""
        ...


class ListedRows:
    """Rows in memory."""

    def __init__(self, rows: Iterable[InputRow]) -> None:
        self._rows = list(rows)
        self.digest = fingerprint([(row.row_id, row.prompt.prompt_id) for row in self._rows])

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, start: int, stop: int) -> Iterator[InputRow]:
        """Those from `start` to before `stop`."""
        return iter(self._rows[start:stop])


class PickedRows:
    """Some rows of an input, in the order in which they were picked; they go by the input's own digest."""

    def __init__(self, rows: Rows, picked: Sequence[int]) -> None:
        self._rows = rows
        self._picked = picked
        self.digest = rows.digest

    def __len__(self) -> int:
        return len(self._picked)

    def read(self, start: int, stop: int) -> Iterator[InputRow]:
        """Those picked from `start` to before `stop`."""
        for row in self._picked[start:stop]:
            yield from self._rows.read(row, row + 1)


class StoredRows:
    """The rows of a `PromptSet` in its directory."""

    def __init__(self, directory: Path, prompts: ArtifactRef) -> None:
        self.prompts = prompts
        self._path = directory / PROMPTS
        self._length = count_parquet(self._path)
        self.digest = prompts.digest

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> Iterator[InputRow]:
        """Those from `start` to before `stop`."""
        for prompt in read_parquet(self._path, Prompt, start=start, stop=stop):
            yield InputRow(prompt.row_id or prompt.prompt_id, prompt)
