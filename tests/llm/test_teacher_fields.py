"""What a recipe may say of a teacher, and what of it reaches a request."""

from typing import Any

import pytest
from pydantic import ValidationError

from potstill.cli.flags import checked
from potstill.errors import UsageError
from potstill.llm.messages import ChatRequest, hidden_tokens
from potstill.recipe import Teacher
from potstill.teacher.plan import make_plan
from potstill.teacher.rows import ListedRows
from tests.fake_teacher import make_teacher, numbered_rows

URL = "http://127.0.0.1:1/v1"


@pytest.mark.parametrize(
    "name",
    [
        *("Authorization", "proxy-authorization", "X-Authorisation", "X-Auth-Key", "Helicone-Auth", "X-Auth-Token"),
        *("X-Api-Key", "api-key", "apikey", "x-goog-api-key", "X-Access-Key", "x-portkey-api-key", "X-Supportkey"),
        *("Private-Token", "X-Token", "Cookie", "x-password", "X-Client-Secret", "X-Passphrase", "X-JWT"),
    ],
)
def test_a_header_that_would_carry_a_key_is_refused_and_its_value_not_repeated(name: str) -> None:
    with pytest.raises(ValidationError, match=r"would carry a key.*api_key_env") as caught:
        make_teacher(URL, headers={name: "secret-5"})
    assert "secret-5" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "Bearer canary-5",
        "bearer  canary-5",
        "Basic dXNlcjpjYW5hcnktNQ==",
        "for the basic basic  dXNlcjpjYW5hcnktNQ",
        "Basic OmNhbmFyeS01",
        "BASIC Pz8_Ojpjw6k-",
        "sk-canary-5",
        '{"api_key": "sk-canary-5"}',
        "gsk_canary-5",
        "pplx-canary-5",
        "nvapi-canary-5",
        "AKIAcanary-5",
        "eyJcanary-5.e30",
    ],
)
def test_a_key_under_a_harmless_name_is_refused_too(value: str) -> None:
    with pytest.raises(ValidationError, match=r"X-Title would carry a key.*api_key_env") as caught:
        make_teacher(URL, headers={"X-Title": value})
    assert "canary-5" not in str(caught.value)
    assert value.rsplit(maxsplit=1)[-1] not in str(caught.value)


@pytest.mark.parametrize("pair", [("X Title", "a"), ("", "a"), ("X-Title", "a\r\nb: c"), ("X-Title", "é")])
def test_what_is_no_header_is_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(ValidationError, match="is no header of HTTP"):
        make_teacher(URL, headers=dict([pair]))


def test_other_headers_are_taken() -> None:
    headers = {
        "HTTP-Referer": "https://example.org",
        "X-Title": "Potstill: risk-free task-sk tickets for sk-learn and the sk-learning-platform",
        "X-Author": "us",
        "X-Plan": "Basic",
        "X-Team": "basic support, basic OpenAI classification, Basic One and Basic Operations of 12 tickets",
        "x-max-tokens": "5",
        "OpenAI-Organization": "org-1",
        "OpenAI-Project": "proj_1",
        "anthropic-beta": "token-efficient-tools-2025-02-19",
        "anthropic-version": "2023-06-01",
        "Helicone-User-Id": "me",
        "Helicone-Property-Session": "7",
        "x-portkey-provider": "openai",
        "x-portkey-trace-id": "t",
    }
    assert make_teacher(URL, headers=headers).headers == headers


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"instructions": "Guide"}, {"messages": [{"role": "system", "content": "Guide"}]}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"stop": ["END"]}, {"stop": ["END"]}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        (
            {"response_schema": {"type": "object"}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
    ],
    ids=str,
)
def test_what_the_recipe_says_is_asked_for_and_changes_the_key(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    rows = ListedRows(numbered_rows(1))
    plain, changed = (next(make_plan(rows, make_teacher(URL, **given), None).answers()) for given in ({}, fields))
    asked = changed.request.model_dump(exclude_none=True)
    for name, value in expected.items():
        assert asked[name] == (value + plain.prompt.messages if name == "messages" else value)
    assert changed.key != plain.key
    assert changed.prompt == plain.prompt, "the student's prompt stays as it is"


def test_where_and_how_it_is_asked_does_not_change_the_key() -> None:
    rows = ListedRows(numbered_rows(1))
    elsewhere = make_teacher(URL, headers={"X-Title": "a"}, api_version="2024-10-21", prompt_caching=False)
    keys = {next(make_plan(rows, teacher, None).answers()).key for teacher in (make_teacher(URL), elsewhere)}
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("content", "tools", "hidden"),
    [
        ("text", None, 0),
        ("text", [{"type": "function"}], 1000),
        ([{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "x"}}], None, 50_000),
    ],
    ids=["text", "tools", "an image"],
)
def test_what_the_bytes_of_a_request_do_not_bound_is_bound_beside_them(content: Any, tools: Any, hidden: int) -> None:
    request = ChatRequest(model="m", messages=[{"role": "user", "content": content}], tools=tools, max_tokens=9)
    assert hidden_tokens(request) == hidden


@pytest.mark.parametrize(
    "url",
    ["https://me:pw-5@llm.example/v1", "https://pw-5@llm.example", "me:pw-5@llm.example/v1", "//me:pw-5@llm.example"],
)
def test_an_address_with_a_user_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValidationError, match=r"holds a user or a password .*api_key_env") as caught:
        make_teacher(url)
    assert "pw-5" not in str(caught.value)


def test_an_at_in_the_path_of_an_address_is_no_user() -> None:
    assert make_teacher("https://llm.example/v1/@cf/meta").base_url == "https://llm.example/v1/@cf/meta"


def test_a_flag_with_a_user_in_the_address_is_not_repeated() -> None:
    with pytest.raises(UsageError, match="--base-url: the address holds a user") as caught:
        checked(Teacher, model="m", base_url="https://me:pw-5@llm.example/v1")
    assert "pw-5" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "fields"),
    [(URL, {"api_version": "2024-10-21"}), ("https://mine.openai.azure.com/openai/v1", {})],
    ids=["by its api-version", "by its host"],
)
def test_azures_batches_are_refused_before_anything_is_asked(url: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="set mode to online"):
        make_teacher(url, mode="batch", **fields)
    assert make_teacher(url, mode="online", **fields).mode == "online"
