from typing import Any

import pytest

from potstill.llm.messages import ChatRequest, schema_format, shared_prefix, with_instructions
from potstill.records import Message

USER: Message = {"role": "user", "content": "Hi"}
REQUEST = ChatRequest(model="m", messages=[USER], max_tokens=9)
CHANGES: list[dict[str, Any]] = [
    {"model": "n"},
    {"max_tokens": 8},
    {"seed": 1},
    {"tool_choice": "none"},
    {"response_format": {"type": "json_object"}},
    {"stop": ["END"]},
    {"reasoning_effort": "low"},
    {"top_p": 0.5},
]


def test_the_answer_key_hangs_on_what_is_asked_and_on_the_sample() -> None:
    same = ChatRequest(model="m", messages=[dict(USER)], max_tokens=9)
    assert same.answer_key(0) == REQUEST.answer_key(0)
    others = [REQUEST.model_copy(update=change) for change in CHANGES]
    keys = {REQUEST.answer_key(0), REQUEST.answer_key(1), *(other.answer_key(0) for other in others)}
    assert len(keys) == len(CHANGES) + 2


def test_what_was_answered_before_a_field_existed_keeps_its_key() -> None:
    assert REQUEST.answer_key(0) == "341887271247ae2d97384cf35071fb79f884cdcbf15f65f2268ab8a6a2ee8ea4"
    full = ChatRequest(
        model="gpt-6-luna",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Größe?"}],
        tools=[{"type": "function", "function": {"name": "f"}}],
        max_tokens=64,
        temperature=0.0,
        seed=7,
    )
    assert full.answer_key(3) == "fb567e5c054eff2bb56acbbffd8b63f3fb3c9a7515789ea1c24be972def255eb"


PART = {"type": "text", "text": "Be kind."}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([USER], [{"role": "system", "content": "Guide"}, USER]),
        ([{"role": "system", "content": "Own"}, USER], [{"role": "system", "content": "Guide\n\nOwn"}, USER]),
        ([{"role": "developer", "content": "Own"}, USER], [{"role": "developer", "content": "Guide\n\nOwn"}, USER]),
        ([{"role": "system", "content": None}, USER], [{"role": "system", "content": "Guide"}, USER]),
        (
            [{"role": "system", "content": [PART]}],
            [{"role": "system", "content": [{"type": "text", "text": "Guide\n\n"}, PART]}],
        ),
        (
            [USER, {"role": "system", "content": "A"}, {"role": "system", "content": "B"}],
            [USER, {"role": "system", "content": "Guide\n\nA"}, {"role": "system", "content": "B"}],
        ),
        ([], [{"role": "system", "content": "Guide"}]),
    ],
    ids=["none", "text", "developer", "empty", "parts", "first of two", "no message"],
)
def test_instructions_come_before_the_first_system_prompt(before: list[Message], after: list[Message]) -> None:
    given = [dict(message) for message in before]
    assert with_instructions(before, "Guide") == after
    assert before == given, "the student's prompt stays as it is"


@pytest.mark.parametrize("instructions", [None, ""])
def test_without_instructions_nothing_changes(instructions: str | None) -> None:
    assert with_instructions([USER], instructions) == [USER]


def with_system(text: str, user: str = "Hi", **fields: Any) -> ChatRequest:
    return ChatRequest(
        model="m",
        messages=[{"role": "system", "content": text}, {"role": "user", "content": user}],
        max_tokens=9,
        **fields,
    )


def test_requests_with_one_long_beginning_share_its_name() -> None:
    long = "Guidance. " * 500
    name = shared_prefix(with_system(long))
    assert name is not None
    assert len(name) == 32
    assert shared_prefix(with_system(long, user="Another prompt")) == name
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert len({name, shared_prefix(with_system(f"{long}!")), shared_prefix(with_system(long, tools=tools))}) == 3


def test_a_beginning_that_no_provider_caches_has_no_name() -> None:
    assert shared_prefix(with_system("Be brief.", user="long " * 5000)) is None
    assert shared_prefix(with_system("x" * 4000)) is None
    assert shared_prefix(with_system("x" * 4096)) is not None
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 4096}}]
    assert shared_prefix(with_system("", tools=tools)) is not None


def test_a_system_message_in_the_midst_is_no_part_of_the_beginning() -> None:
    late = ChatRequest(model="m", messages=[USER, {"role": "system", "content": "x" * 9000}], max_tokens=9)
    assert shared_prefix(late) is None


def test_a_schema_is_asked_for_strictly() -> None:
    schema = {"type": "object"}
    assert schema_format(schema) == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }
    assert schema_format(None) is None
