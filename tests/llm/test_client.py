import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from potstill.errors import NotAuthorisedError
from potstill.llm.client import Attempt, ChatClient
from potstill.llm.endpoint import open_endpoint
from potstill.llm.messages import ChatRequest, Reply
from potstill.llm.providers import PROVIDERS
from potstill.llm.providers.base import Failure, Limit
from potstill.records import Usage
from tests.fake_teacher import (
    BAD_REQUEST,
    CUT,
    EMPTY,
    FORBIDDEN,
    HANG,
    MALFORMED,
    NOT_FOUND,
    QUOTA,
    RATE_LIMITED,
    RESET,
    SERVER_ERROR,
    UNAUTHORISED,
    WITHOUT_USAGE,
    FakeTeacher,
    Fault,
    error,
    redirect,
)

REQUEST = ChatRequest(model="m", messages=[{"role": "user", "content": "Which is #0007?"}], max_tokens=9)


@pytest.fixture
async def client(teacher: FakeTeacher) -> AsyncIterator[ChatClient]:
    async with ChatClient(open_endpoint("openai_compatible", teacher.url), timeout_seconds=5) as client:
        yield client


async def ask(client: ChatClient) -> Attempt:
    return await client.ask(client.encode(REQUEST))


async def test_an_answer_comes_with_its_text_and_its_bill(teacher: FakeTeacher, client: ChatClient) -> None:
    attempt = await ask(client)
    tokens = Usage(input=teacher.billed[0], output=teacher.billed[1])
    message = {"role": "assistant", "content": "answer to #0007"}
    assert attempt == Attempt(Reply(message, "answer to #0007", "stop", tokens), 200, may_be_billed=False)
    assert teacher.requests[0].path == "/v1/chat/completions"
    assert teacher.requests[0].body == {"model": "m", "messages": REQUEST.messages, "max_tokens": 9}
    assert "authorization" not in teacher.requests[0].headers


@pytest.mark.parametrize(
    ("fault", "cause", "status", "may_be_billed"),
    [
        (RATE_LIMITED, "rate_limit", 429, False),
        (SERVER_ERROR, "transient", 500, False),
        (error(503), "transient", 503, False),
        (error(408), "transient", 408, False),
        (EMPTY, "transient", 200, False),
        (MALFORMED, "transient", 200, True),
        (WITHOUT_USAGE, "transient", 200, True),
        (RESET, "transient", None, True),
        (CUT, "transient", None, True),
        (BAD_REQUEST, "request", 400, False),
        (error(422), "request", 422, False),
        (UNAUTHORISED, "authorisation", 401, False),
        (error(402), "billing", 402, False),
        (FORBIDDEN, "authorisation", 403, False),
        (QUOTA, "billing", 429, False),
        (NOT_FOUND, "run", 404, False),
        (redirect("http://127.0.0.1:9/"), "run", 307, False),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
async def test_each_fault_has_its_cause_and_says_whether_it_may_be_billed(
    teacher: FakeTeacher, client: ChatClient, fault: Fault, cause: str, status: int | None, may_be_billed: bool
) -> None:
    teacher.fail_next(fault)
    attempt = await ask(client)
    assert isinstance(attempt.outcome, Failure)
    assert (attempt.outcome.cause, attempt.http_status, attempt.may_be_billed) == (cause, status, may_be_billed)
    assert len(teacher.requests) == 1, "the client asks once; retrying is the caller's"


async def test_an_unusable_reply_still_tells_its_bill(teacher: FakeTeacher, client: ChatClient) -> None:
    teacher.fail_next(EMPTY)
    assert (await ask(client)).outcome.usage == Usage(input=7, output=3)


async def test_a_hanging_server_is_left_at_the_timeout(teacher: FakeTeacher) -> None:
    teacher.fail_next(HANG)
    async with ChatClient(open_endpoint("openai_compatible", teacher.url), timeout_seconds=0.3) as client:
        attempt = await ask(client)
    assert isinstance(attempt.outcome, Failure)
    assert (attempt.outcome.cause, attempt.outcome.message) == ("transient", "no answer within 0.3 s")
    assert attempt.may_be_billed


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("2.5", 2.5), ("0", 0.0), ("-3", None), ("inf", None), ("nan", None), ("soon", None), (None, None)],
)
async def test_the_wait_that_the_server_asks_for(
    teacher: FakeTeacher, client: ChatClient, header: str | None, seconds: float | None
) -> None:
    teacher.fail_next(error(429, retry_after=header))
    outcome = (await ask(client)).outcome
    assert isinstance(outcome, Failure)
    assert outcome.retry_after_seconds == seconds


async def test_a_server_that_is_not_there_was_never_asked(teacher: FakeTeacher) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    async with ChatClient(open_endpoint("openai_compatible", url)) as client:
        attempt = await ask(client)
    assert isinstance(attempt.outcome, Failure)
    assert (attempt.outcome.cause, attempt.may_be_billed) == ("transient", False)
    assert attempt.outcome.message == "no connection: connection refused"


@pytest.mark.parametrize(
    ("ending", "is_told"), [("", False), ("/chat/completions", True), ("/../api", True), ("/chat/completions/", True)]
)
async def test_a_404_says_where_base_url_ends_where_it_seems_to_end_elsewhere(
    teacher: FakeTeacher, ending: str, is_told: bool
) -> None:
    teacher.behaviour = lambda asked: error(404)
    url = teacher.url.removesuffix("/v1") + "/api" if ending == "/../api" else teacher.url + ending
    async with ChatClient(open_endpoint("openai_compatible", url)) as client:
        outcome = (await ask(client)).outcome
    assert isinstance(outcome, Failure)
    assert outcome.message.endswith("base_url ends before /chat/completions, usually in /v1") == is_told


async def test_a_host_that_does_not_exist_fails_every_request() -> None:
    async with ChatClient(open_endpoint("openai_compatible", "http://nobody.invalid/v1")) as client:
        attempt = await ask(client)
    assert isinstance(attempt.outcome, Failure)
    assert (attempt.outcome.cause, attempt.may_be_billed) == ("run", False)
    assert "nobody.invalid" in attempt.outcome.message


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed_and_the_key_reaches_no_other_host(
    teacher: FakeTeacher, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("MY_KEY", "secret-1")
    with FakeTeacher() as other:
        teacher.behaviour = lambda asked: redirect(f"{other.url}/chat/completions")._replace(status=status)
        async with ChatClient(open_endpoint("openai_compatible", teacher.url, api_key_env="MY_KEY")) as client:
            outcome = (await ask(client)).outcome
        assert other.requests == []
    assert isinstance(outcome, Failure)
    assert outcome.cause == "run"
    assert "never followed" in outcome.message
    assert [asked.headers["authorization"] for asked in teacher.requests] == ["Bearer secret-1"]


def test_the_key_of_a_provider_goes_to_no_server_on_this_machine(
    teacher: FakeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-2")
    with pytest.raises(NotAuthorisedError, match=r"belongs to api\.openai\.com"):
        open_endpoint("openai_compatible", teacher.url, api_key_env="OPENAI_API_KEY")


async def test_the_openai_provider_at_another_address_sends_no_key_of_its_own(
    teacher: FakeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-3")
    async with ChatClient(open_endpoint("openai", teacher.url)) as client:
        await ask(client)
    assert "authorization" not in teacher.requests[0].headers
    assert teacher.requests[0].body["max_completion_tokens"] == 9


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"choices": []},
        {"choices": [None]},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"role": "user", "content": "x"}}]},
        {"choices": [{"message": {"content": 7}}]},
        {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}},
        {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 1}},
        {"choices": [{"message": {"content": "x"}}], "usage": []},
    ],
)
def test_a_body_of_any_shape_is_a_failure_and_never_a_crash(body: Any) -> None:
    outcome = PROVIDERS["openai_compatible"].read_reply(body)
    assert isinstance(outcome, Failure)
    assert (outcome.cause, outcome.usage) == ("transient", None)


def test_cached_and_reasoning_tokens_are_read() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    reply = PROVIDERS["openai"].read_reply({"choices": [{"message": {"content": "x"}}], "usage": usage})
    assert reply.usage == Usage(input=10, cached_input=4, cache_write=2, output=8, reasoning=5)


def test_an_answer_cut_before_its_first_word_is_kept_because_it_would_be_cut_again() -> None:
    body = {
        "choices": [{"message": {"content": ""}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 9},
    }
    assert isinstance(PROVIDERS["openai"].read_reply(body), Reply)


async def test_headers_and_version_of_a_teacher_go_with_every_request(
    teacher: FakeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret-4")
    headers = {"X-Title": "Potstill", "Content-Type": "text/plain"}
    endpoint = open_endpoint("openai_compatible", teacher.url, api_key_env="MY_KEY", headers=headers)
    async with ChatClient(endpoint, api_version="2024-10-21") as client:
        assert isinstance((await ask(client)).outcome, Reply)
    asked = teacher.requests[0]
    assert asked.path == "/v1/chat/completions?api-version=2024-10-21"
    assert asked.headers["x-title"] == "Potstill"
    assert (asked.headers["content-type"], asked.headers["authorization"]) == ("application/json", "Bearer secret-4")


async def test_every_reply_tells_of_the_limits_of_its_server(teacher: FakeTeacher, client: ChatClient) -> None:
    headers = (("X-RateLimit-Limit-Requests", "60"), ("x-ratelimit-remaining-requests", "59"))
    teacher.fail_next(EMPTY._replace(headers=headers), RATE_LIMITED._replace(headers=headers))
    expected = {"requests": Limit(60, 59, None)}
    assert [(await ask(client)).limits for _ in range(3)] == [expected, expected, {}]


async def test_a_proxy_of_the_environment_sees_no_prompt(teacher: FakeTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTeacher() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        async with ChatClient(open_endpoint("openai_compatible", teacher.url)) as client:
            assert isinstance((await ask(client)).outcome, Reply)
        assert proxy.requests == []


async def test_a_cookie_of_one_reply_does_not_come_back_with_the_next_request(
    teacher: FakeTeacher, client: ChatClient
) -> None:
    teacher.fail_next(EMPTY._replace(headers=(("set-cookie", "session=1; Path=/"),)))
    await ask(client)
    await ask(client)
    assert "cookie" not in teacher.requests[1].headers


@pytest.mark.parametrize("host", ["a..b", "x" * 80 + ".example"])
async def test_a_host_that_no_name_can_be_is_no_host(host: str) -> None:
    async with ChatClient(open_endpoint("openai_compatible", f"http://{host}/v1")) as client:
        attempt = await ask(client)
    assert isinstance(attempt.outcome, Failure)
    assert (attempt.outcome.cause, attempt.may_be_billed) == ("run", False)
    assert "check base_url" in attempt.outcome.message


@pytest.mark.parametrize(
    ("told", "cause", "status", "says"),
    [
        ({"code": 402, "message": "Insufficient credits"}, "billing", 402, "HTTP 402: Insufficient credits"),
        ({"code": 401, "message": "No auth credentials found"}, "authorisation", 401, "No auth credentials found"),
        ({"code": 429, "message": "slow down"}, "rate_limit", 429, "slow down"),
        ({"code": 400, "message": "maximum context length is 9"}, "request", 400, "shorten it"),
        ({"code": 503, "message": "No provider is up"}, "transient", 503, "HTTP 503: No provider is up"),
        ({"code": "insufficient_quota", "message": "quota"}, "billing", 502, "quota"),
        ({"code": 1234, "message": "odd"}, "transient", 502, "HTTP 502: odd"),
        ({"code": True, "message": "odd"}, "transient", 502, "odd"),
        ({"type": "overloaded_error", "message": "Overloaded"}, "transient", 502, "Overloaded"),
        ("down", "transient", 502, "HTTP 502: down"),
    ],
    ids=str,
)
@pytest.mark.parametrize("provider", ["openai_compatible", "anthropic"])
async def test_an_error_that_comes_as_a_200_means_what_its_code_says_and_was_not_billed(
    teacher: FakeTeacher, provider: str, told: Any, cause: str, status: int, says: str
) -> None:
    teacher.fail_next(Fault("hidden", 200, json.dumps({"error": told}).encode(), (("retry-after", "3"),)))
    async with ChatClient(open_endpoint(provider, teacher.url), timeout_seconds=5) as client:
        attempt = await ask(client)
    assert isinstance(attempt.outcome, Failure)
    assert (attempt.outcome.cause, attempt.http_status, attempt.may_be_billed) == (cause, status, False)
    assert says in attempt.outcome.message
    assert attempt.outcome.retry_after_seconds == (3 if cause in {"rate_limit", "transient"} else None)


async def test_the_bill_of_an_error_that_comes_as_a_200_is_kept(teacher: FakeTeacher, client: ChatClient) -> None:
    body = {"error": {"code": 502, "message": "died"}, "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    teacher.fail_next(Fault("hidden", 200, json.dumps(body).encode(), usage=(7, 3)))
    assert (await ask(client)).outcome.usage == Usage(input=7, output=3)


async def test_an_answer_beside_an_empty_error_is_an_answer(teacher: FakeTeacher, client: ChatClient) -> None:
    choice = {"message": {"content": "well"}, "finish_reason": "stop"}
    body = {"error": None, "choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    teacher.fail_next(Fault("whole", 200, json.dumps(body).encode(), usage=(7, 3)))
    assert isinstance((await ask(client)).outcome, Reply)
