"""A chat JSONL file as the rows that commands read: parsed and redacted line by line, where they are needed."""

from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from potstill import redact as redaction
from potstill.curation.curate import quarantined_line, redact_prompt
from potstill.curation.identity import prompt_id
from potstill.curation.readers import Line, is_blank, read_line
from potstill.errors import DataError
from potstill.fingerprint import file_sha256, fingerprint
from potstill.records import Prompt, QuarantinedLine
from potstill.teacher.rows import InputRow


class ChatRows:
    """Every prompt of the file counts as one of the test split.

    Its length counts the lines that cannot be read too; reading leaves them out.

    Errors: `DataError` where there is no prompt.
    """

    def __init__(self, path: Path, *, redact: bool = True) -> None:
        self._path = path
        self._redact = redact
        self._numbers = array("Q")
        self._offsets = array("Q")
        self._index()
        self.digest = fingerprint([file_sha256(path), redaction.VERSION if redact else None])
        first = next(self._lines(0, 1), None)
        if next(self.read(0, len(self)), None) is None:
            raise DataError(f"{path}: no prompt in it" + (f"; first reason: line {_say(first)}" if first else ""))

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, start: int, stop: int) -> Iterator[InputRow]:
        """Those from line `start` to before line `stop`, blank ones not counted."""
        for line in self._lines(start, stop):
            if line.prompt is None:
                continue
            raw = redact_prompt(line.prompt, Counter()) if self._redact else line.prompt
            identity = prompt_id(raw.messages, raw.tools)
            prompt = Prompt(
                prompt_id=identity,
                messages=raw.messages,
                tools=raw.tools,
                task_kind="classification",
                workload=raw.workload,
                group_id=identity,
                split="test",
                source=f"{self._path}:{line.number}",
                row_id=raw.row_id,
                reference=raw.reference,
            )
            yield InputRow(raw.row_id or identity, prompt)

    def quarantined(self) -> list[QuarantinedLine]:
        """The lines that cannot be read."""
        lines = self._lines(0, len(self))
        return [quarantined_line(str(self._path), line) for line in lines if line.prompt is None]

    def _index(self) -> None:
        offset = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not is_blank(line):
                    self._numbers.append(number)
                    self._offsets.append(offset)
                offset += len(line)

    def _lines(self, start: int, stop: int) -> Iterator[Line]:
        with self._path.open("rb") as file:
            for index in range(start, min(stop, len(self))):
                file.seek(self._offsets[index])
                yield read_line(self._numbers[index], file.readline())


def _say(line: Line) -> str:
    return f"{line.number}: {line.reason}"
