"""The prompts that a teacher is to answer, left on disk: only those that are being asked are in memory."""

from collections.abc import Iterable, Iterator
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
