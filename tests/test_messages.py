import pytest

from potstill.messages import as_text

CALL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("message", "read"),
    [
        ({"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "a b"},
        ),
        ({"role": "user", "content": []}, {"role": "user", "content": ""}),
        (
            {"role": "assistant", "content": None, "tool_calls": CALL, "refusal": None, "annotations": []},
            {"role": "assistant", "content": "", "tool_calls": CALL},
        ),
        (
            {"role": "tool", "tool_call_id": "1", "name": "f", "content": "42"},
            {"role": "tool", "content": "42", "name": "f", "tool_call_id": "1"},
        ),
    ],
)
def test_a_student_reads_text_whatever_form_it_came_in(message: dict, read: dict) -> None:
    assert as_text(message) == read


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}],
            "only text parts can be read, not image",
        ),
        ([{"type": "text"}], "not a part without its text"),
        (["a"], "only text parts can be read, not a"),
        (3, "int, neither text nor a list of text parts"),
    ],
)
def test_what_is_no_text_is_named(content: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        as_text({"role": "user", "content": content})
