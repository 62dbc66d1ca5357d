"""Reader of Alpaca's form: `{"instruction", "input"?, "output"?, "system"?, "history"?: [[question, answer], …]}`.

The prompt is the instruction, and the input below it; the output is the reference.
"""

from typing import Any

from potstill.curation.readers.raw import RawPrompt, conversation, parsed, row_id_of, text_of, workload_of


def read(record: dict[str, Any]) -> RawPrompt | None:
    """The prompt of one instruction."""
    if "instruction" not in record:
        return None
    instruction, given = record["instruction"], record.get("input")
    if not isinstance(instruction, str) or not instruction.strip():
        raise ValueError("instruction: no text")
    asked = f"{instruction}\n\n{given}" if isinstance(given, str) and given.strip() else instruction
    return RawPrompt(
        messages=conversation(record.get("system"), [*_history(parsed(record.get("history"))), ("user", asked)]),
        workload=workload_of(record),
        row_id=row_id_of(record, "id"),
        reference=text_of(record, "reference", "output"),
    )


def _history(value: Any) -> list[tuple[str, Any]]:
    if value is None or value == "":
        return []
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise ValueError("history: not a list of pairs of a question and its answer")
    return [turn for question, answer in value for turn in (("user", question), ("assistant", answer))]
