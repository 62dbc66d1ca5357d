from typing import Any

import pytest

from potstill.llm.messages import ChatRequest, Reply
from potstill.llm.providers import PROVIDERS
from potstill.llm.providers.base import Failure
from potstill.records import Usage

REQUEST = ChatRequest(model="m", messages=[{"role": "user", "content": "Hello"}], max_tokens=9)
COMPATIBLE, OPENAI = PROVIDERS["openai_compatible"], PROVIDERS["openai"]


def reply(usage: Any = None, **message: Any) -> Any:
    counted = {"prompt_tokens": 10, "completion_tokens": 2} if usage is None else usage
    choice = {"message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": counted}


def test_a_request_holds_only_what_was_asked_for() -> None:
    bare = {"model": "m", "messages": REQUEST.messages}
    assert COMPATIBLE.body(REQUEST) == {**bare, "max_tokens": 9}
    assert OPENAI.body(REQUEST) == {**bare, "max_completion_tokens": 9}
    asked = {
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "required",
        "response_format": {"type": "json_object"},
        "temperature": 0.0,
        "top_p": 0.5,
        "stop": ["END"],
        "seed": 0,
        "reasoning_effort": "low",
    }
    assert COMPATIBLE.body(REQUEST.model_copy(update=asked)) == {**bare, "max_tokens": 9, **asked}


def test_a_key_travels_as_a_bearer_token_and_no_key_as_nothing() -> None:
    assert COMPATIBLE.headers("k") == {"authorization": "Bearer k"}
    assert COMPATIBLE.headers(None) == {}


@pytest.mark.parametrize(
    ("url", "header"),
    [
        ("https://mine.openai.azure.com/openai/v1", "api-key"),
        ("https://mine.services.ai.azure.com/openai/v1", "api-key"),
        ("https://azure.com.evil.example/v1", "authorization"),
        ("https://notazure.com/v1", "authorization"),
    ],
)
def test_azure_takes_the_key_in_a_header_of_its_own(url: str, header: str) -> None:
    assert list(COMPATIBLE.headers("k", url)) == list(OPENAI.headers("k", url)) == [header]


def test_only_openai_is_told_which_requests_share_a_prefix() -> None:
    system = {"role": "system", "content": "Guidance. " * 500}
    long = [REQUEST.model_copy(update={"messages": [system, {"role": "user", "content": text}]}) for text in "ab"]
    keys = {OPENAI.body(request, cache_prefix=True)["prompt_cache_key"] for request in long}
    assert len(keys) == 1
    assert "prompt_cache_key" not in OPENAI.body(long[0])
    assert "prompt_cache_key" not in OPENAI.body(REQUEST, cache_prefix=True)
    assert COMPATIBLE.body(long[0], cache_prefix=True) == COMPATIBLE.body(long[0])


@pytest.mark.parametrize(
    "message",
    [
        {
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"content": None, "refusal": "I cannot."},
        {"content": "yes", "annotations": []},
    ],
    ids=["tool call", "refusal", "text"],
)
def test_whatever_says_something_is_an_answer_and_its_message_is_kept_whole(message: dict[str, Any]) -> None:
    found = COMPATIBLE.read_reply(reply(**message))
    assert isinstance(found, Reply)
    assert found.message == {"role": "assistant", **message}
    assert found.text == (message["content"] or "")


def test_an_answer_in_parts_is_the_text_of_it_without_what_was_thought() -> None:
    """As Mistral's reasoning models answer."""
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "hm, a refund"}]}
    parts = [thought, {"type": "text", "text": "bill"}, {"type": "text", "text": "ing"}]
    read = COMPATIBLE.read_reply(reply(content=parts))
    assert isinstance(read, Reply)
    assert (read.text, read.message["content"]) == ("billing", "billing")
    malformed = COMPATIBLE.read_reply(reply(content=[{"text": "no type"}]))
    assert isinstance(malformed, Failure)
    assert malformed.usage is not None


@pytest.mark.parametrize("content", ["", " \n", None])
def test_an_answer_that_says_nothing_is_asked_again_and_its_bill_is_kept(content: str | None) -> None:
    found = COMPATIBLE.read_reply(reply(content=content))
    assert isinstance(found, Failure)
    assert (found.cause, found.usage) == ("transient", Usage(input=10, output=2))


def test_an_answer_that_a_filter_took_whole_is_kept_because_it_would_be_taken_again() -> None:
    filtered = {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}
    assert isinstance(COMPATIBLE.read_reply({**filtered, "usage": {"prompt_tokens": 1, "completion_tokens": 0}}), Reply)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -1, "completion_tokens": 2},
        {"prompt_tokens": 1, "completion_tokens": 10**30},
        {"prompt_tokens": 1, "completion_tokens": 2.5},
        {"prompt_tokens": None, "completion_tokens": 2},
        {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": [3]},
        {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": "all"}},
    ],
)
def test_a_bill_that_cannot_be_true_is_no_bill(usage: dict[str, Any]) -> None:
    found = COMPATIBLE.read_reply(reply(usage, content="yes"))
    assert isinstance(found, Failure)
    assert (found.cause, found.usage) == ("transient", None)


def test_no_more_tokens_are_cached_than_there_are() -> None:
    details = {"cached_tokens": 3, "cache_write_tokens": 9}
    usage = {"prompt_tokens": 4, "completion_tokens": 2, "prompt_tokens_details": details}
    found = COMPATIBLE.read_reply(reply(usage, content="yes"))
    assert found.usage == Usage(input=4, cached_input=3, cache_write=1, output=2)


@pytest.mark.parametrize("details", [None, {}, {"cached_tokens": None}])
def test_a_bill_without_details_is_a_bill(details: Any) -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": 2, "prompt_tokens_details": details}
    assert COMPATIBLE.read_reply(reply(usage, content="yes")).usage == Usage(input=4, output=2)


@pytest.mark.parametrize(
    ("usage", "output", "reasoning"),
    [
        ({"completion_tokens": 330, "total_tokens": 342, "reasoning": 317}, 330, 317),
        ({"completion_tokens": 2, "total_tokens": 331, "reasoning": 317}, 319, 317),
        ({"completion_tokens": 900, "total_tokens": 1229, "reasoning": 317}, 1217, 317),
        ({"completion_tokens": 198, "total_tokens": 615}, 603, 0),
        ({"completion_tokens": 0, "total_tokens": 72}, 60, 0),
        ({"completion_tokens": 2, "reasoning": 317}, 319, 317),
        ({"completion_tokens": 2, "total_tokens": 14, "reasoning": 317}, 319, 317),
        ({"completion_tokens": 9, "total_tokens": 0}, 9, 0),
        ({"completion_tokens": 9, "total_tokens": None}, 9, 0),
    ],
    ids=[
        "OpenAI",
        "xAI",
        "xAI, long",
        "Gemini",
        "Gemini, all thought",
        "no total",
        "odd total",
        "total 0",
        "total null",
    ],
)
def test_what_a_model_thought_is_billed_wherever_its_provider_counts_it(
    usage: dict[str, Any], output: int, reasoning: int
) -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": usage.pop("reasoning", None)}}
    found = COMPATIBLE.read_reply(reply({"prompt_tokens": 12, **usage, **details}, content="yes"))
    assert found.usage == Usage(input=12, output=output, reasoning=reasoning)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "busy",
        {},
        {"error": None},
        {"error": "overloaded"},
        {"error": []},
        {"error": {"message": None, "code": None}},
        {"error": {"message": {"a": 1}, "code": ["x"], "type": {"y": 1}}},
        {"error": {"message": 7, "code": 7}},
    ],
    ids=str,
)
def test_an_error_of_any_shape_has_the_cause_of_its_status(status: int, body: Any) -> None:
    causes = {
        400: "request",
        401: "authorisation",
        403: "authorisation",
        404: "run",
        429: "rate_limit",
        500: "transient",
    }
    found = COMPATIBLE.read_error(status, body, {})
    assert found.cause == causes[status]
    assert f"HTTP {status}" in found.message


def test_what_the_server_said_is_passed_on_in_short() -> None:
    assert "overloaded" in COMPATIBLE.read_error(500, {"error": "overloaded"}, {}).message
    assert "too long" in COMPATIBLE.read_error(400, {"error": {"message": " too long "}}, {}).message
    assert len(COMPATIBLE.read_error(400, {"error": {"message": "x" * 5000}}, {}).message) < 250


@pytest.mark.parametrize("field", ["code", "type"])
@pytest.mark.parametrize("said", ["insufficient_quota", "billing_hard_limit_reached", "billing_not_active"])
def test_an_empty_account_is_no_rate_limit(field: str, said: str) -> None:
    assert COMPATIBLE.read_error(429, {"error": {field: said}}, {"retry-after": "1"}).cause == "billing"


def test_a_path_that_takes_no_requests_is_an_address_that_is_wrong_and_no_refusal_of_a_prompt() -> None:
    assert COMPATIBLE.read_error(405, None, {}).cause == "run"
