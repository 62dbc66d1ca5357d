"""The Messages API: what a request in OpenAI's words becomes, and what is made of the reply."""

import json
from typing import Any

import pytest

from potstill.llm.client import ChatClient
from potstill.llm.endpoint import open_endpoint
from potstill.llm.messages import ChatRequest, Reply, schema_format
from potstill.llm.providers import PROVIDERS
from potstill.llm.providers.base import Failure
from potstill.records import Message, Usage
from tests.fake_teacher import FakeTeacher, Fault

ANTHROPIC = PROVIDERS["anthropic"]
USER: Message = {"role": "user", "content": "Hello"}
REQUEST = ChatRequest(model="m", messages=[USER], max_tokens=9)
TOOL = {
    "type": "function",
    "function": {"name": "find", "description": "Finds", "parameters": {"type": "object"}, "strict": True},
}
CALL = {"id": "t1", "type": "function", "function": {"name": "find", "arguments": '{"word": "a"}'}}
USE = {"type": "tool_use", "id": "t1", "name": "find", "input": {"word": "a"}}
CACHED = {"cache_control": {"type": "ephemeral"}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def body(cache_prefix: bool = False, **fields: Any) -> dict[str, Any]:
    return ANTHROPIC.body(REQUEST.model_copy(update=fields), cache_prefix=cache_prefix)


def test_a_request_holds_only_what_was_asked_for() -> None:
    assert body() == {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": [text("Hello")]}]}
    assert ANTHROPIC.headers("k") == {"anthropic-version": "2023-06-01", "x-api-key": "k"}
    assert ANTHROPIC.headers(None) == {"anthropic-version": "2023-06-01"}


@pytest.mark.parametrize(
    ("messages", "system", "turns"),
    [
        ([{"role": "system", "content": "Be brief."}, USER], ["Be brief."], [("user", ["Hello"])]),
        (
            [{"role": "developer", "content": "A"}, USER, {"role": "system", "content": "B"}],
            ["A", "B"],
            [("user", ["Hello"])],
        ),
        ([USER, {"role": "user", "content": "again"}], [], [("user", ["Hello", "again"])]),
        (
            [USER, {"role": "assistant", "content": "Yes?"}, {"role": "assistant", "content": "Well?"}, USER],
            [],
            [("user", ["Hello"]), ("assistant", ["Yes?", "Well?"]), ("user", ["Hello"])],
        ),
        (
            [{"role": "assistant", "content": "How can I help?"}, USER],
            [],
            [("user", ["(The assistant speaks first.)"]), ("assistant", ["How can I help?"]), ("user", ["Hello"])],
        ),
        ([USER, {"role": "assistant", "content": ""}, USER], [], [("user", ["Hello", "Hello"])]),
        ([{"role": "user", "name": "Ann", "content": [text("a"), text(""), text("b")]}], [], [("user", ["a", "b"])]),
        ([{"role": "system", "content": "alone"}], ["alone"], []),
    ],
    ids=["system", "two of them", "same role", "several turns", "assistant first", "empty", "parts", "no turn"],
)
def test_a_conversation_is_told_in_turns(
    messages: list[Message], system: list[str], turns: list[tuple[str, list[str]]]
) -> None:
    found = body(messages=messages)
    assert found.get("system", []) == [text(words) for words in system]
    assert [(turn["role"], [part["text"] for part in turn["content"]]) for turn in found["messages"]] == turns


def test_tools_their_calls_and_their_results_are_told_in_its_form() -> None:
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "t2"}]},
        {"role": "tool", "tool_call_id": "t1", "content": "found"},
        {"role": "tool", "tool_call_id": "t2", "content": [text("not found")]},
        {"role": "user", "content": "Thanks"},
    ]
    found = body(messages=messages, tools=[TOOL, {"type": "function", "function": {"name": "bare"}}])
    assert found["tools"] == [
        {"name": "find", "description": "Finds", "input_schema": {"type": "object"}, "strict": True},
        {"name": "bare", "input_schema": {"type": "object", "properties": {}}},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": [text("found")]},
        {"type": "tool_result", "tool_use_id": "t2", "content": [text("not found")]},
    ]
    assert found["messages"][1:] == [
        {"role": "assistant", "content": [USE, {**USE, "id": "t2"}]},
        {"role": "user", "content": [*results, text("Thanks")]},
    ]


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        (None, {}),
        ("{cut", {"arguments": "{cut"}),
        ("[1]", {"arguments": "[1]"}),
        ({"a": 1}, {"a": 1}),
    ],
)
def test_arguments_of_any_form_are_an_object(arguments: Any, given: Any) -> None:
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    found = body(messages=[USER, {"role": "assistant", "content": "", "tool_calls": [call]}])
    assert found["messages"][1]["content"][0]["input"] == given


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"tool_choice": "auto"}, {"tool_choice": {"type": "auto"}}),
        ({"tool_choice": "none"}, {"tool_choice": {"type": "none"}}),
        ({"tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "find"}}},
            {"tool_choice": {"type": "tool", "name": "find"}},
        ),
        ({"temperature": 0.0, "top_p": 0.5}, {"temperature": 0.0, "top_p": 0.5}),
        ({"stop": ["END"]}, {"stop_sequences": ["END"]}),
        ({"seed": 7}, {}),
        ({"reasoning_effort": "high"}, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}),
        ({"reasoning_effort": "minimal"}, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        (
            {"reasoning_effort": "low", "tool_choice": "required"},
            {"tool_choice": {"type": "any"}, "output_config": {"effort": "low"}},
        ),
        (
            {"response_format": schema_format({"type": "object"})},
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        ),
        (
            {"response_format": {"type": "json_object"}},
            {"system": [text("Answer with one JSON object and nothing else.")]},
        ),
    ],
    ids=str,
)
def test_each_parameter_has_its_counterpart(asked: dict[str, Any], expected: dict[str, Any]) -> None:
    bare = body(tools=[TOOL])
    assert body(tools=[TOOL], **asked) == {**bare, **expected}


def test_a_choice_among_no_tools_is_left_out() -> None:
    assert body(tool_choice="auto") == body()


def test_the_mark_of_a_shared_prefix_stands_at_its_end() -> None:
    system = [{"role": "system", "content": "A"}, {"role": "system", "content": "B"}]
    both = body(cache_prefix=True, messages=[*system, USER], tools=[TOOL])
    assert both["system"] == [text("A"), {**text("B"), **CACHED}]
    assert "cache_control" not in both["tools"][0]
    assert body(cache_prefix=True, tools=[TOOL])["tools"][0]["cache_control"] == {"type": "ephemeral"}
    assert body(cache_prefix=True) == body()
    assert "cache_control" not in TOOL, "what the caller gave stays as it was"


def reply(*content: dict[str, Any], stop_reason: Any = "end_turn", usage: Any = None, **fields: Any) -> dict[str, Any]:
    counted = {"input_tokens": 10, "output_tokens": 2} if usage is None else usage
    message = {"type": "message", "role": "assistant", "content": list(content)}
    return {**message, "stop_reason": stop_reason, "usage": counted, **fields}


@pytest.mark.parametrize(
    ("given", "message", "finish_reason"),
    [
        (reply(text("Hel"), text("lo")), {"content": "Hello"}, "stop"),
        (reply(text("Hello"), stop_reason="stop_sequence"), {"content": "Hello"}, "stop"),
        (reply({"type": "thinking", "thinking": "hm", "signature": "s"}, text("Hello")), {"content": "Hello"}, "stop"),
        (reply(text("Hel"), stop_reason="max_tokens"), {"content": "Hel"}, "length"),
        (reply(stop_reason="max_tokens"), {"content": ""}, "length"),
        (reply(text("Hel"), stop_reason="model_context_window_exceeded"), {"content": "Hel"}, "length"),
        (
            reply(USE, stop_reason="tool_use"),
            {"content": None, "tool_calls": [{**CALL, "function": {"name": "find", "arguments": '{"word":"a"}'}}]},
            "tool_calls",
        ),
        (
            reply(stop_reason="refusal", stop_details={"type": "refusal", "category": "bio", "explanation": "No."}),
            {"content": None, "refusal": "No."},
            "content_filter",
        ),
        (
            reply(text("Well"), stop_reason="refusal", stop_details={"type": "refusal", "category": "cyber"}),
            {"content": "Well", "refusal": "cyber"},
            "content_filter",
        ),
        (reply(stop_reason="refusal"), {"content": None, "refusal": "refused"}, "content_filter"),
        (reply(text("Hello"), stop_reason="pause_turn"), {"content": "Hello"}, "pause_turn"),
    ],
)
def test_a_reply_becomes_an_assistant_message(given: Any, message: Message, finish_reason: str) -> None:
    found = ANTHROPIC.read_reply(given)
    assert found == Reply(
        {"role": "assistant", **message}, message["content"] or "", finish_reason, Usage(input=10, output=2)
    )


def test_the_bill_counts_what_was_read_from_the_cache_and_what_was_put_into_it() -> None:
    usage = {
        "input_tokens": 3,
        "cache_read_input_tokens": 2000,
        "cache_creation_input_tokens": 500,
        "output_tokens": 90,
        "output_tokens_details": {"thinking_tokens": 80},
    }
    found = ANTHROPIC.read_reply(reply(text("Hello"), usage=usage))
    assert found.usage == Usage(input=2503, cached_input=2000, cache_write=500, output=90, reasoning=80)


@pytest.mark.parametrize("words", [[], [text("")], [text(" \n")], [{"type": "thinking", "thinking": "hm"}]], ids=str)
def test_an_answer_that_says_nothing_is_asked_again_and_its_bill_is_kept(words: list[dict[str, Any]]) -> None:
    found = ANTHROPIC.read_reply(reply(*words))
    assert isinstance(found, Failure)
    assert (found.cause, found.usage) == ("transient", Usage(input=10, output=2))


@pytest.mark.parametrize(
    "given",
    [
        None,
        [],
        {},
        "busy",
        {"type": "error", "error": {"type": "api_error"}},
        reply(text("a"), usage=[]),
        reply(text("a"), usage={"input_tokens": 1}),
        reply(text("a"), usage={"input_tokens": "many", "output_tokens": 1}),
        reply(text("a"), usage={"input_tokens": 1, "output_tokens": -1}),
        reply(text("a"), usage={"input_tokens": 1, "output_tokens": 1, "cache_read_input_tokens": "all"}),
        reply(text("a"), usage={"input_tokens": 1, "output_tokens": 1, "output_tokens_details": [1]}),
    ],
    ids=str,
)
def test_a_bill_that_cannot_be_read_is_no_bill(given: Any) -> None:
    found = ANTHROPIC.read_reply(given)
    assert isinstance(found, Failure)
    assert (found.cause, found.usage) == ("transient", None)


@pytest.mark.parametrize(
    "change",
    [
        {"role": "user"},
        {"type": "completion"},
        {"content": None},
        {"content": [None]},
        {"content": [{"type": "text"}]},
        {"content": [{"type": "text", "text": 7}]},
        {"content": [{"type": "tool_use", "id": "t1"}]},
        {"stop_reason": None},
        {"stop_reason": ["x"]},
    ],
    ids=str,
)
def test_a_body_of_any_shape_is_a_failure_and_never_a_crash(change: dict[str, Any]) -> None:
    found = ANTHROPIC.read_reply({**reply(text("a")), **change})
    assert isinstance(found, Failure)
    assert (found.cause, found.usage) == ("transient", Usage(input=10, output=2))


async def test_a_conversation_over_the_wire() -> None:
    limits = [("anthropic-ratelimit-requests-limit", "50"), ("anthropic-ratelimit-requests-remaining", "49")]
    call = json.dumps(reply(USE, stop_reason="tool_use")).encode()
    overloaded = json.dumps({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}).encode()
    with FakeTeacher() as teacher:
        async with ChatClient(open_endpoint("anthropic", teacher.url)) as client:
            messages: list[Message] = [{"role": "system", "content": "Find #0042."}, USER]

            teacher.fail_next(Fault("overloaded", 529, overloaded), Fault("call", 200, call, tuple(limits)))
            request = REQUEST.model_copy(update={"messages": messages, "tools": [TOOL]})
            busy = await client.ask(client.encode(request))
            assert isinstance(busy.outcome, Failure)
            assert (busy.outcome.cause, busy.http_status, busy.may_be_billed) == ("transient", 529, False)

            called = await client.ask(client.encode(request, cache_prefix=True))
            assert isinstance(called.outcome, Reply)
            assert called.limits["requests"].remaining == 49

            result = {"role": "tool", "tool_call_id": "t1", "content": "it is #0042"}
            request = request.model_copy(update={"messages": [*messages, called.outcome.message, result]})
            answered = await client.ask(client.encode(request))
    assert isinstance(answered.outcome, Reply)
    assert answered.outcome.text == "answer to #0042"
    assert not answered.may_be_billed
    first, second, third = teacher.requests
    assert {asked.path for asked in teacher.requests} == {"/v1/messages"}
    assert first.headers["anthropic-version"] == "2023-06-01"
    assert "x-api-key" not in first.headers
    assert second.body["system"] == [{**text("Find #0042."), **CACHED}]
    assert third.body["messages"][1] == {"role": "assistant", "content": [USE]}
    assert third.billed == (answered.outcome.usage.input, answered.outcome.usage.output)
