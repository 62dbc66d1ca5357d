"""The rows on disk. Messages and tools are kept as JSON text, so that no row changes another row's column type."""

import os
from array import array
from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field

from potstill.kinds import Split, TaskKind, TermsKind

Message = dict[str, Any]
"""One chat message in OpenAI's form: `{"role": …, "content": …}`, tool calls included."""


class Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompt(Row):
    """One production prompt of a `PromptSet`, after redaction."""

    prompt_id: str
    """sha256 of the canonical JSON of messages and tools, 32 hex digits."""
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    task_kind: TaskKind
    workload: str
    """Which task of the traffic it belongs to; "" where the log names none."""
    group_id: str
    """Prompts of one group always share a split."""
    split: Split
    source: str
    """`file:line` of its first appearance."""
    row_id: str | None = None
    """The caller's own id, where the input had one."""
    reference: str | None = None
    """The gold answer, where the input had one."""


Tokens = Annotated[int, Field(ge=0, lt=2**31)]
"""As many as a database's integer holds; a reply that claims others is not believed."""


class Usage(Row):
    """Tokens of one answer, by kind. `input` includes `cached_input` and `cache_write`; `output` includes `reasoning`."""

    input: Tokens = 0
    cached_input: Tokens = 0
    """Read from the provider's prompt cache."""
    cache_write: Tokens = 0
    """Put into it."""
    output: Tokens = 0
    reasoning: Tokens = 0

    def within_input(self) -> "Usage":
        """The same, with no more tokens of the cache than there are tokens of input."""
        cached = min(self.cached_input, self.input)
        written = min(self.cache_write, self.input - cached)
        if (cached, written) == (self.cached_input, self.cache_write):
            return self
        return self.model_copy(update={"cached_input": cached, "cache_write": written})


class Completion(Row):
    """One answer to one prompt: the teacher's, or an arm's in an evaluation."""

    prompt_id: str
    sample_index: int = 0
    teacher: str
    """The model that answered, as it was asked for."""
    completion: str
    """The text of the answer; "" where it holds only tool calls."""
    message: Message
    """The assistant message as it came."""
    finish_reason: str
    usage: Usage
    cost_usd: Decimal = Decimal(0)
    """What the attempts behind this answer cost, unusable ones included."""
    seconds: float = 0.0
    """Wall time of the request, or of this prompt's share of its batch."""
    choice_score: float = 0.0
    """What speaks for this sample of its prompt; of the usable ones the first with the highest is trained on."""
    quarantine: str | None = None
    """Why the answer must not be trained on; None when it may be."""


def best_samples(completions: Iterable[Completion]) -> dict[str, Completion]:
    """By prompt, the sample that counts: of those not quarantined the one chosen; where all are, the first."""
    best: dict[str, Completion] = {}
    for row in completions:
        known = best.get(row.prompt_id)
        if known is None or _rank(row) < _rank(known):
            best[row.prompt_id] = row
    return best


def _rank(row: Completion) -> tuple[bool, float, int]:
    is_quarantined = row.quarantine is not None
    return is_quarantined, 0.0 if is_quarantined else -row.choice_score, row.sample_index


class TeacherTerms(Row):
    """Whether a teacher's answers may train another model, and who said so. All that is made of them carries it on."""

    teacher: str
    """The model's name."""
    host: str
    """Where it was asked."""
    kind: TermsKind
    link: str
    """Where the provider states its terms; "" where nobody looked."""
    attested: str | None
    """The user's own statement, word for word; None where none was given."""

    def describe(self) -> str:
        said = f'; attested: "{self.attested}"' if self.attested else ""
        return f"{self.teacher} at {self.host}: {self.kind}{f' ({self.link})' if self.link else ''}{said}"


def adapter_name(digest: str) -> str:
    """What a student signs its completions with, where a teacher's carry the model's name."""
    return f"adapter {digest[:12]}"


class Example(Row):
    """One SFT row, TRL's conversational prompt/completion form."""

    prompt_id: str
    prompt: list[Message]
    completion: list[Message]
    tools: list[dict[str, Any]] | None = None
    split: Split


class Preference(Row):
    """One DPO row: chosen is the teacher's answer, rejected the student base's own."""

    prompt_id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]] | None = None
    split: Split


class QuarantinedLine(Row):
    """An input line that could not be used; its file is readable by the owner only."""

    file: str
    line: int = Field(ge=0)
    reason: str
    excerpt: str
    """The first 200 characters, redacted."""


R = TypeVar("R", bound=Row)


def write_jsonl(path: Path, rows: Iterable[BaseModel | dict[str, Any]]) -> int:
    """Write one JSON object a line and return how many."""
    count = 0
    with path.open("wb") as file:
        for row in rows:
            data = row.model_dump(mode="json") if isinstance(row, BaseModel) else row
            file.write(orjson.dumps(data) + b"\n")
            count += 1
    return count


def read_jsonl(path: Path, model: type[R]) -> Iterator[R]:
    """Yield the rows of a JSONL file that Potstill wrote."""
    with path.open("rb") as file:
        for line in file:
            yield model.model_validate_json(line)


def _arrow() -> tuple[Any, Any]:
    """Pyarrow and its Parquet, with the allocator of the system: its own takes 20 MB more from the first import on."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pa, pq


def write_parquet(path: Path, rows: Iterable[R], model: type[R], *, batch_rows: int = 1024) -> int:
    """Write rows as Parquet and return how many. Numbers and strings are native columns, all else is JSON text."""
    pa, pq = _arrow()
    numbers = {int: pa.int64(), float: pa.float64()}
    fields = {name: info.annotation for name, info in model.model_fields.items()}
    schema = pa.schema([(name, numbers.get(kind, pa.string())) for name, kind in fields.items()])
    as_json = _json_columns(model)
    count = 0
    iterator = iter(rows)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(iterator, batch_rows)):
            columns = [_column(batch, name, kind, is_json=name in as_json) for name, kind in fields.items()]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            count += len(batch)
    return count


def _column(rows: list[R], name: str, kind: Any, *, is_json: bool) -> Any:
    """One column of a batch. `pa.array` would import pandas, which takes 50 MB and a fifth of a second."""
    pa, _ = _arrow()
    values = [getattr(row, name) for row in rows]
    if kind in {int, float}:
        code, arrow = ("q", pa.int64()) if kind is int else ("d", pa.float64())
        return pa.Array.from_buffers(arrow, len(values), [None, pa.py_buffer(array(code, values))])
    as_text = _json_text if is_json else str
    builder = pa.lib.StringBuilder()
    builder.append_values([None if value is None else as_text(value) for value in values])
    return builder.finish()


def _json_text(value: Any) -> str:
    return orjson.dumps(value, default=lambda inner: inner.model_dump(mode="json")).decode()


def read_parquet(path: Path, model: type[R], *, start: int = 0, stop: int | None = None) -> Iterator[R]:
    """Yield the rows of a Parquet file that `write_parquet` wrote: all, or those from `start` to before `stop`."""
    _, pq = _arrow()
    as_json = _json_columns(model)
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
        first = 0
        for index, num_rows in enumerate(groups):
            begin, end = max(start - first, 0), num_rows if stop is None else min(stop - first, num_rows)
            first += num_rows
            if begin >= end:
                continue
            for row in file.read_row_group(index).slice(begin, end - begin).to_pylist():
                row.update({name: orjson.loads(row[name]) for name in as_json if row[name] is not None})
                yield model.model_validate(row)


def count_parquet(path: Path) -> int:
    """How many rows a Parquet file holds."""
    _, pq = _arrow()
    return pq.read_metadata(path).num_rows


def _json_columns(model: type[Row]) -> tuple[str, ...]:
    """The fields that hold a list, a dict or another model."""
    flat = (str, int, float, Decimal, str | None, Split, TaskKind)
    return tuple(name for name, info in model.model_fields.items() if info.annotation not in flat)
