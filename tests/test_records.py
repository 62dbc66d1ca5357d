"""What is written is what is read, to the last field."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from potstill.records import (
    Completion,
    Example,
    Preference,
    Prompt,
    QuarantinedLine,
    Usage,
    read_jsonl,
    read_parquet,
    write_jsonl,
    write_parquet,
)

TOOL_CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
}
USER = [{"role": "user", "content": "naïve 日本 \U0001f600 \n\t"}]
PROMPT = Prompt(
    prompt_id="a" * 32, messages=USER, task_kind="extraction", workload="w", group_id="g", split="test", source="in:1"
)
ROWS = {
    Prompt: [
        PROMPT,
        PROMPT.model_copy(
            update={
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"n": [1, 2.5, None]}}}],
                "row_id": "7",
                "reference": '{"x": null}',
                "messages": [*USER, TOOL_CALL, {"role": "tool", "tool_call_id": "1", "content": [{"type": "text"}]}],
            }
        ),
    ],
    Completion: [
        Completion(
            prompt_id="p",
            sample_index=3,
            teacher="m",
            completion="",
            message=TOOL_CALL,
            finish_reason="tool_calls",
            usage=Usage(input=10, cached_input=4, output=3, reasoning=1),
            cost_usd=Decimal("0.000000123456789012345"),
            seconds=0.1,
            quarantine="truncated",
        ),
        Completion(prompt_id="q", teacher="m", completion="x", message={}, finish_reason="stop", usage=Usage()),
    ],
    Example: [
        Example(prompt_id="p", prompt=USER, completion=[TOOL_CALL], split="train"),
        Example(prompt_id="p", prompt=USER, completion=USER, tools=[{}], split="validation"),
    ],
    Preference: [Preference(prompt_id="p", prompt=USER, chosen=USER, rejected=[TOOL_CALL], split="train")],
    QuarantinedLine: [QuarantinedLine(file="f", line=1, reason="r", excerpt="\x00\u2028")],
}


@pytest.mark.parametrize("model", ROWS, ids=lambda model: model.__name__)
@pytest.mark.parametrize(("write", "read"), [(write_jsonl, read_jsonl), (write_parquet, read_parquet)])
def test_rows_come_back_as_they_went_in(tmp_path, model, write, read):
    path = tmp_path / "rows"
    rows = ROWS[model] * 3
    count = write(path, rows) if write is write_jsonl else write(path, rows, model, batch_rows=2)
    assert count == len(rows)
    assert list(read(path, model)) == rows


@pytest.mark.parametrize("model", ROWS, ids=lambda model: model.__name__)
def test_no_rows_are_no_rows(tmp_path, model):
    assert write_parquet(tmp_path / "rows", [], model) == 0
    assert list(read_parquet(tmp_path / "rows", model)) == []


def test_money_keeps_every_digit(tmp_path):
    write_parquet(tmp_path / "rows", ROWS[Completion], Completion)
    assert str(next(read_parquet(tmp_path / "rows", Completion)).cost_usd) == "1.23456789012345E-7"


def test_rows_of_different_shape_share_a_schema(tmp_path):
    """One tool schema must not become a column of every other row."""
    import pyarrow.parquet as pq

    write_parquet(tmp_path / "rows", ROWS[Prompt], Prompt)
    schema = pq.read_schema(tmp_path / "rows")
    assert schema.names == list(Prompt.model_fields)
    assert {str(field.type) for field in schema} == {"string"}


@pytest.mark.parametrize("text", ['{"prompt_id": "p"}', '{"prompt_id": 1, "chosen": []}', "{"])
def test_a_row_of_another_model_is_refused(tmp_path, text):
    (tmp_path / "rows").write_text(text + "\n")
    with pytest.raises(ValidationError):
        list(read_jsonl(tmp_path / "rows", Preference))


def test_rows_are_frozen_and_closed():
    with pytest.raises(ValidationError):
        PROMPT.split = "train"
    with pytest.raises(ValidationError):
        Usage.model_validate({"input": 1, "inptu": 2})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(messages=st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), min_size=1, max_size=3))
def test_any_json_survives_in_messages(tmp_path_factory, messages):
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    row = PROMPT.model_copy(update={"messages": messages})
    write_parquet(path, [row], Prompt)
    assert list(read_parquet(path, Prompt)) == [row]
