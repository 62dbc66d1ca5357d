"""What commands read: prompt sets, chat files, completions."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import orjson
from pydantic import ValidationError

from potstill.artifacts import MANIFEST, ArtifactRef, load_artifact, read_manifest
from potstill.cli.chat_rows import ChatRows
from potstill.errors import DataError
from potstill.records import Completion, Prompt, QuarantinedLine, Row, TeacherTerms, read_parquet
from potstill.teacher.rows import InputRow, StoredRows

R = TypeVar("R", bound=Row)


class InputRows(NamedTuple):
    rows: list[InputRow]
    quarantined: list[QuarantinedLine]
    source: ArtifactRef | None
    """The prompt set that the rows come from; None for a chat file."""


def read_rows(path: Path) -> InputRows:
    """The prompts of a PromptSet directory, or of chat JSONL, redacted; there every prompt counts as one of the test split.

    Errors: `DataError` where there is no prompt.
    """
    rows = open_rows(path)
    listed = list(rows.read(0, len(rows)))
    if isinstance(rows, ChatRows):
        return InputRows(listed, rows.quarantined(), None)
    return InputRows(listed, [], load_artifact(path, "PromptSet"))


def open_rows(path: Path, *, redact: bool = True) -> ChatRows | StoredRows:
    """The rows of a PromptSet directory, or of chat JSONL, read where they are needed.

    Errors: `DataError` where there is no prompt.
    """
    if (path / MANIFEST).is_file():
        return StoredRows(path, load_artifact(path, "PromptSet"))
    if not path.is_file():
        raise DataError(f"{path}: neither a PromptSet directory (written by `potstill curate`) nor a chat JSONL file")
    return ChatRows(path, redact=redact)


def tell_unread(rows: InputRows) -> None:
    """Say on standard error how many lines of a chat file could not be read, and why the first could not."""
    if rows.quarantined:
        first = rows.quarantined[0]
        print(
            f"lines that could not be read: {len(rows.quarantined)}, the first: line {first.line}: {first.reason}",
            file=sys.stderr,
        )


class CompletionLine(NamedTuple):
    prompt: Prompt
    completion: Completion


def read_completions(path: Path, prompt_ids: Mapping[str, set[str]]) -> list[Completion]:
    """The completions of a directory, or of a JSONL file; each prompt and sample once.

    A line is as `potstill teach` writes it, or only `{"prompt_id" or "id", "completion"}`; an id is that of the prompts'
    own file, and `prompt_ids` gives the prompts that have it.

    Errors: `DataError` naming the line that is none.
    """
    if path.is_dir():
        ref = load_artifact(path, "Completions")
        return list(read_parquet(Path(ref.uri) / "completions.parquet", Completion))
    rows = [_parse(path, number, _whole(path, number, line, prompt_ids), Completion) for number, line in _lines(path)]
    return list({(row.prompt_id, row.sample_index): row for row in rows}.values())


def terms_of_completions(path: Path) -> tuple[TeacherTerms, ...]:
    """What the manifest beside completions says of their teachers' terms; nothing where there is none."""
    directory = path if path.is_dir() else path.parent
    return read_manifest(directory).teacher_terms if (directory / MANIFEST).is_file() else ()


def _whole(path: Path, number: int, line: dict[str, Any], prompt_ids: Mapping[str, set[str]]) -> dict[str, Any]:
    """The line with what a bare answer leaves out."""
    whole = {
        "teacher": f"the answers of {path.name}",
        "message": {"role": "assistant", "content": line.get("completion")},
        "finish_reason": "stop",
        "usage": {},
        **line,
    }
    if "prompt_id" not in line:
        meant = prompt_ids.get(str(line.get("id")), set())
        if len(meant) != 1:
            why = "more than one prompt has it" if meant else "no prompt has it"
            raise DataError(f"{path}:{number}: id {line.get('id')!r}: {why}: give prompt_id")
        whole["prompt_id"] = next(iter(meant))
    return whole


def read_completion_lines(path: Path) -> list[CompletionLine]:
    """The lines of a completions.jsonl with their prompts, each prompt and sample once. Errors: as `read_completions`."""
    found: dict[tuple[str, int], CompletionLine] = {}
    for number, line in _lines(path):
        completion = _parse(path, number, line, Completion)
        identity = completion.prompt_id
        known = {
            "task_kind": "classification",
            "workload": "",
            "group_id": identity,
            "split": "train",
            "source": f"{path}:{number}",
        }
        prompt = _parse(path, number, line | known, Prompt)
        found[identity, completion.sample_index] = CompletionLine(prompt, completion)
    return list(found.values())


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file: name a completions.jsonl, or the directory that holds it")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                data = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not valid JSON: {error.msg}") from None
            if not isinstance(data, dict):
                raise DataError(f"{path}:{number}: not an object")
            yield number, data


def _parse(path: Path, number: int, data: dict[str, Any], model: type[R]) -> R:
    try:
        return model.model_validate({name: data[name] for name in model.model_fields if name in data})
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(str(part) for part in detail["loc"])
        raise DataError(f"{path}:{number}: {place}: {detail['msg'].lower()}") from None
