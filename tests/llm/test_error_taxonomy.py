"""One taxonomy for all providers: the cause of each error, and what a user reads of it."""

from typing import Any

import pytest

from potstill.llm.providers import PROVIDERS

NAMES = sorted(PROVIDERS)
REGAIN = "You will regain access on 2026-12-01 at 00:00 UTC."


def anthropic_error(kind: str, message: str = "", **details: Any) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message, **details}, "request_id": "req_1"}


def openai_error(code: str | None, message: str = "", kind: str | None = None) -> dict[str, Any]:
    return {"error": {"code": code, "type": kind, "message": message, "param": None}}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (301, "run"),
        (400, "request"),
        (401, "authorisation"),
        (402, "billing"),
        (403, "authorisation"),
        (404, "run"),
        (405, "run"),
        (408, "transient"),
        (425, "transient"),
        (498, "transient"),
        (499, "transient"),
        (409, "transient"),
        (413, "request"),
        (422, "request"),
        (429, "rate_limit"),
        (500, "transient"),
        (503, "transient"),
        (529, "transient"),
    ],
)
def test_a_status_without_a_word_has_a_cause(name: str, status: int, cause: str) -> None:
    found = PROVIDERS[name].read_error(status, None, {"retry-after": "2"})
    assert found.cause == cause
    assert f"HTTP {status}" in found.message
    waits = cause == "rate_limit" or (cause == "transient")
    assert found.retry_after_seconds == (2 if waits else None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, openai_error("insufficient_quota", kind="insufficient_quota")),
        (429, openai_error("credit_balance_exhausted")),
        (429, openai_error("organization_spend_limit_exceeded")),
        (429, openai_error("project_spend_limit_exceeded")),
        (429, openai_error("organization_usage_limit_exceeded")),
        (429, openai_error("billing_hard_limit_reached")),
        (400, openai_error("billing_not_active")),
        (402, anthropic_error("billing_error")),
        (429, anthropic_error("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"})),
        (429, anthropic_error("rate_limit_error", details={"error_code": "contract_spend_limit_reached"})),
        (400, anthropic_error("invalid_request_error", "Your credit balance is too low to access the API.")),
        (400, anthropic_error("invalid_request_error", f"You have reached your specified API usage limits. {REGAIN}")),
        (
            400,
            anthropic_error(
                "invalid_request_error", f"You have reached your specified workspace API usage limits. {REGAIN}"
            ),
        ),
    ],
    ids=str,
)
def test_an_account_without_money_is_never_asked_again(name: str, status: int, body: Any) -> None:
    assert PROVIDERS[name].read_error(status, body, {"retry-after": "1"}).cause == "billing"


@pytest.mark.parametrize(
    "body",
    [
        openai_error("rate_limit_exceeded"),
        anthropic_error("rate_limit_error", "You have exceeded your organization's rate limit"),
        anthropic_error("rate_limit_error", details={"error_code": "ramp_limit_exceeded"}),
        [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "check your plan and billing details"}}],
    ],
    ids=str,
)
def test_a_limit_of_pace_is_no_lack_of_money(body: Any) -> None:
    assert PROVIDERS["openai_compatible"].read_error(429, body, {}).cause == "rate_limit"


@pytest.mark.parametrize(
    ("status", "body", "remedy"),
    [
        (
            400,
            openai_error("context_length_exceeded", "This model's maximum context length is 8192 tokens."),
            "shorten",
        ),
        (400, openai_error(None, "prompt is too long for the context window"), "shorten"),
        (
            400,
            anthropic_error("invalid_request_error", "prompt is too long: 250000 tokens > 200000 maximum"),
            "shorten",
        ),
        (413, anthropic_error("request_too_large", "Request exceeds the maximum size"), "shorten"),
        (400, openai_error("content_policy_violation", "Rejected by the safety system."), "content policy refuses"),
        (400, openai_error("content_filter", "The response was filtered."), "content policy refuses"),
        (400, anthropic_error("invalid_request_error", "Output blocked by content filtering policy"), "content policy"),
    ],
    ids=str,
)
def test_a_refused_prompt_says_what_may_be_done(status: int, body: Any, remedy: str) -> None:
    found = PROVIDERS["openai_compatible"].read_error(status, body, {})
    assert found.cause == "request"
    assert remedy in found.message
    assert found.message.startswith(f"HTTP {status}: ")


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("Unsupported parameter: 'max_tokens' is not supported with this model.", "run"),
        ("Unknown parameter: 'prompt_cache_key'.", "run"),
        ("Unsupported parameter: 'seed' is not supported with this model.", "request"),
        ("max_tokens is too large: 100000. This model supports at most 16384 completion tokens.", "request"),
    ],
)
def test_a_field_that_the_client_chose_is_no_fault_of_a_prompt(said: str, cause: str) -> None:
    assert PROVIDERS["openai"].read_error(400, openai_error("unsupported_parameter", said), {}).cause == cause


def test_another_refused_prompt_says_what_the_server_said_and_no_more() -> None:
    found = PROVIDERS["openai"].read_error(400, openai_error("invalid_value", "tools: f is no name"), {})
    assert found.message == "HTTP 400: tools: f is no name"


def test_what_a_terminal_obeys_or_a_database_refuses_is_in_no_message() -> None:
    said = "\x1b[2Jbad\u0000\ud800text\r\nin two lines\u0085"
    found = PROVIDERS["openai"].read_error(400, openai_error("invalid_value", said), {})
    assert found.message == "HTTP 400: [2Jbad text in two lines"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"message": "at the top", "code": 400}, "HTTP 400: at the top"),
        ([{"error": {"message": "in a list"}}], "HTTP 400: in a list"),
        ({"error": "bare"}, "HTTP 400: bare"),
        ([], "HTTP 400"),
        ([7], "HTTP 400"),
    ],
)
def test_errors_of_other_shapes_are_read_too(body: Any, says: str) -> None:
    assert PROVIDERS["openai_compatible"].read_error(400, body, {}).message == says
