from typing import Any

import pytest

from potstill.llm.messages import Reply
from potstill.recipe import Task
from potstill.records import Usage
from potstill.teacher.quality import quarantine_reason

CLASSIFY = Task(kind="classification", labels=("spam", "ham"))
EXTRACT = Task(kind="extraction")


def reply(text: str, finish_reason: str = "stop", **message: Any) -> Reply:
    return Reply({"role": "assistant", "content": text, **message}, text, finish_reason, Usage())


@pytest.mark.parametrize(
    ("answer", "task"),
    [
        (reply("anything at all"), None),
        (reply("spam"), CLASSIFY),
        (reply(" ham\n"), CLASSIFY),
        (reply('{"total": 3}'), EXTRACT),
        (reply("{}"), EXTRACT),
        (reply("", tool_calls=[{"id": "1"}]), None),
    ],
)
def test_a_good_answer_may_be_used(answer: Reply, task: Task | None) -> None:
    assert quarantine_reason(answer, task) is None


@pytest.mark.parametrize(
    ("answer", "task", "reason"),
    [
        (reply("spa", "length"), None, "truncated"),
        (reply("spam", "MAX_TOKENS"), CLASSIFY, "truncated"),
        (reply("spam", "model_length"), CLASSIFY, "truncated"),
        (reply("spam", "length"), CLASSIFY, "truncated"),
        (reply("", "content_filter"), None, "refused by a content filter"),
        (reply("", refusal="I cannot"), None, "refusal"),
        (reply("spam", refusal="I cannot"), CLASSIFY, "refusal"),
        (reply("I will", "content_filter", refusal="cyber"), None, "refusal"),
        (reply("spam", "error"), CLASSIFY, "unfinished: error"),
        (reply('{"total": 3}', "abort"), EXTRACT, "unfinished: abort"),
        (reply("half an", "pause_turn"), None, "unfinished: pause_turn"),
        (reply("half an", "insufficient_system_resource"), None, "unfinished: insufficient_system_resource"),
        (reply("", "error", tool_calls=[{"id": "1"}]), None, "unfinished: error"),
        (reply("half an", "x" * 90), None, "unfinished: " + "x" * 40),
        (reply(" \n"), None, "empty"),
        (reply("Spam"), CLASSIFY, "not a label: Spam"),
        (reply("spam."), CLASSIFY, "not a label: spam."),
        (reply("x" * 90), CLASSIFY, "not a label: " + "x" * 40),
        (reply("", tool_calls=[{"id": "1"}]), CLASSIFY, "tool calls in place of an answer"),
        (reply("", tool_calls=[{"id": "1"}]), EXTRACT, "tool calls in place of an answer"),
        (reply("[1]"), EXTRACT, "not a JSON object"),
        (reply('```json\n{"a": 1}\n```'), EXTRACT, "not a JSON object"),
        (reply('{"a": 1'), EXTRACT, "not a JSON object"),
    ],
)
def test_what_must_not_be_trained_on_says_why(answer: Reply, task: Task | None, reason: str) -> None:
    assert quarantine_reason(answer, task) == reason


@pytest.mark.parametrize("reason", ["stop", "STOP", "tool_calls", "function_call", "unknown", "eos", "end_turn"])
def test_an_answer_that_came_to_its_end_may_be_used_whatever_the_server_calls_that(reason: str) -> None:
    assert quarantine_reason(reply("spam", reason), CLASSIFY) is None


SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "number"}},
    "required": ["total"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"total": 3}', None),
        ('{"total": "3"}', "not as the schema says: $.total: '3' is not of type 'number'"),
        ("{}", "not as the schema says: $: 'total' is a required property"),
        ("three", "not JSON"),
    ],
)
@pytest.mark.parametrize("task", [None, EXTRACT])
def test_an_answer_follows_the_schema_that_was_asked_for(text: str, reason: str | None, task: Task | None) -> None:
    assert quarantine_reason(reply(text), task, SCHEMA) == reason


def test_an_answer_that_is_nested_too_deeply_for_its_schema_is_kept_out_and_ends_nothing() -> None:
    deep = {"$ref": "#/$defs/list", "$defs": {"list": {"type": "array", "items": {"$ref": "#/$defs/list"}}}}
    assert quarantine_reason(reply("[" * 900 + "]" * 900), None, deep) == "not as the schema says: nested too deeply"
