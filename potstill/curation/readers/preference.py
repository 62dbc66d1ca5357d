"""Reader of OpenAI's preference JSONL: `{"input": {messages, tools?}, "preferred_output", "non_preferred_output"}`.

The preferred answer is the reference. The other one is not used: the student's own answers make the pairs of a DPO rung.
"""

from typing import Any

from potstill.curation.readers.raw import RawPrompt, check_messages, check_tools, row_id_of, workload_of


def read(record: dict[str, Any]) -> RawPrompt | None:
    """The prompt of one pair."""
    given, preferred = record.get("input"), record.get("preferred_output")
    if not isinstance(given, dict) or "preferred_output" not in record:
        return None
    answer = preferred[-1] if isinstance(preferred, list) and preferred and isinstance(preferred[-1], dict) else {}
    content = answer.get("content")
    return RawPrompt(
        messages=check_messages(given.get("messages")),
        tools=check_tools(given.get("tools")),
        workload=workload_of(record),
        row_id=row_id_of(record, "id"),
        reference=content if isinstance(content, str) and content else None,
    )
