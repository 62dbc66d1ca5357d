"""Where a recipe of somebody else's sends requests and keys, and where it does not get them to."""

import asyncio
import socket
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import yarl
from pydantic import ValidationError

from potstill.errors import NotAuthorisedError, PotstillError, UsageError
from potstill.llm.client import ChatClient
from potstill.llm.endpoint import endpoint_of, open_endpoint
from potstill.llm.keys import find_key
from potstill.llm.messages import ChatRequest
from potstill.llm.reach import guarded_resolver, is_forbidden
from potstill.recipe import Teacher
from tests.recording_server import Answer, RecordingServer

KEY = "sk-canary-7f3Qz0teacher9"


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POTSTILL_KEY_HOSTS", "POTSTILL_TEACHER_HOSTS", "POTSTILL_DATA_ROOTS", "PREFECT__FLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)


def teacher(**given: Any) -> Teacher:
    return Teacher.model_validate({"provider": "openai_compatible", "model": "m", **given})


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "PATH"])
@pytest.mark.parametrize(
    "base_url",
    [
        "http://evil.example/v1",
        "https://api.openai.com.evil.example/v1",
        "https://api.openai.com.:443@evil.example/v1",
        "https://api.openai.com:443@evil.example/v1",
        "https://api.openai.com\\@evil.example/v1",
        "https://evil.example\\.api.openai.com/v1",
        "https://evil.example/v1?.api.openai.com",
        "https://evil.example#api.openai.com",
        "https://api.open\nai.com/v1",
        "https://api.openai.com\t.evil.example/v1",
        "https://api.openаi.com/v1",  # a Cyrillic а
        "https://api.openai.com。evil.example/v1",
        "https://evil.example／api.openai.com/v1",
        "https://api.openai.com./v1",
        "//api.openai.com@evil.example/v1",
        "http://api.openai.com/v1",
        "javascript:api.openai.com",
    ],
)
def test_no_key_goes_where_the_address_only_looks_like_its_host(variable: str, base_url: str) -> None:
    with pytest.raises((ValidationError, PotstillError)) as caught:
        endpoint_of(teacher(base_url=base_url, api_key_env=variable))
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("base_url", ["https://API.openai.com/v1", "https://api.openai.com:443/v1/"])
def test_an_address_that_is_accepted_means_the_same_host_to_the_client(base_url: str) -> None:
    endpoint = endpoint_of(teacher(base_url=base_url, api_key_env="OPENAI_API_KEY"))
    assert urlsplit(endpoint.base_url).hostname == yarl.URL(endpoint.base_url).host == "api.openai.com"


@pytest.mark.parametrize("confine", ["POTSTILL_DATA_ROOTS", "PREFECT__FLOW_RUN_ID"])
def test_a_confined_run_gives_no_variable_to_a_server_on_this_machine(
    confine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = "http://127.0.0.1:9/v1"
    assert find_key("AWS_SECRET_ACCESS_KEY", here) == KEY
    monkeypatch.setenv(confine, "/data")
    with pytest.raises(NotAuthorisedError, match="bound to no host"):
        find_key("AWS_SECRET_ACCESS_KEY", here)
    with pytest.raises(NotAuthorisedError, match="bound to no host"):
        find_key("NOT_SET_AT_ALL", here)
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", "AWS_SECRET_ACCESS_KEY=127.0.0.1:9")
    assert find_key("AWS_SECRET_ACCESS_KEY", here) == KEY


@pytest.mark.parametrize(
    "base_url", ["https://x.example/v1?key=sk-query-9", "http://x.example/v1#sk-query-9", "http://x/?"]
)
def test_an_address_with_a_query_is_refused_and_not_repeated(base_url: str) -> None:
    with pytest.raises(ValidationError, match="a query or a fragment") as caught:
        teacher(base_url=base_url)
    assert "sk-query" not in str(caught.value)
    with pytest.raises(UsageError, match="no query") as refused:
        open_endpoint("openai_compatible", base_url)
    assert "sk-query" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "connection",
        "Content-Type",
        "Metadata-Flavor",
        "Proxy-Connection",
    ],
)
def test_a_header_that_bends_a_request_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="set by the client"):
        teacher(base_url="http://x/v1", headers={name: "1"})


@pytest.mark.parametrize("value", ["a\r\nauthorization: x", "a\nb", "é"])
def test_no_header_holds_two(value: str) -> None:
    with pytest.raises(ValidationError, match="no header of HTTP"):
        teacher(base_url="http://x/v1", headers={"x-a": value})


async def ask(base_url: str, **given: Any):
    endpoint = endpoint_of(teacher(base_url=base_url, **given))
    async with ChatClient(endpoint, api_version=given.get("api_version"), timeout_seconds=5) as client:
        body = client.encode(ChatRequest(model="m", messages=[{"role": "user", "content": "?"}], max_tokens=1))
        return await client.ask(body)


async def test_the_version_cannot_lead_elsewhere_or_add_to_the_query() -> None:
    with RecordingServer() as server:
        await ask(server.url, api_version="1&admin=1#/../x?y")
    [target] = map(urlsplit, server.targets)
    assert (target.path, parse_qsl(target.query)) == ("/v1/chat/completions", [("api-version", "1&admin=1#/../x?y")])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_takes_the_key_nowhere(status: int) -> None:
    with RecordingServer() as evil, RecordingServer() as server:
        server.default = Answer(status, headers={"location": f"{evil.url}/chat/completions"})
        await ask(server.url, api_key_env="AWS_SECRET_ACCESS_KEY")
    assert len(server.targets) == 1
    assert evil.targets == []


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "169.254.1.1", "[fe80::1]", "[fe80::1%25eth0]", "[::ffff:169.254.169.254]"),
        *("[fd00:ec2::254]", "100.100.100.200", "168.63.129.16"),
    ],
)
def test_an_address_of_a_metadata_service_is_refused_with_or_without_a_key(host: str) -> None:
    for variable in (None, "AWS_SECRET_ACCESS_KEY"):
        with pytest.raises(PotstillError):
            endpoint_of(teacher(base_url=f"http://{host}/latest", api_key_env=variable))


@pytest.mark.parametrize("host", ["2852039166", "0xA9FEA9FE", "0251.0376.0251.0376", "169.254.43518"])
async def test_however_it_is_written(host: str) -> None:
    assert socket.getaddrinfo(host, 80)[0][4][0] == "169.254.169.254", "the system reads it so"
    attempt = await ask(f"http://{host}/latest")
    assert "no host named" in getattr(attempt.outcome, "message", "")


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.7", "192.168.1.4", "::1", "api.openai.com", "8.8.8.8"])
def test_other_hosts_are_not(host: str) -> None:
    assert not is_forbidden(host)


async def test_a_name_resolves_as_ever() -> None:
    resolver = guarded_resolver()
    assert {found["host"] for found in await resolver.resolve("localhost", 80, socket.AF_INET)} == {"127.0.0.1"}
    with pytest.raises(OSError, match="link-local"):
        await resolver.resolve("0xA9FEA9FE", 80, socket.AF_INET)
    await asyncio.wait_for(resolver.close(), 1)


def test_where_hosts_are_named_prompts_go_to_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_TEACHER_HOSTS", "vllm.example:8000, 127.0.0.1")
    for allowed in ("http://vllm.example:8000/v1", "http://127.0.0.1:1/v1", "https://api.openai.com/v1"):
        assert endpoint_of(teacher(base_url=allowed)).base_url == allowed
    for other in ("http://vllm.example:8001/v1", "https://evil.example/v1"):
        with pytest.raises(NotAuthorisedError, match="name it in POTSTILL_TEACHER_HOSTS"):
            endpoint_of(teacher(base_url=other))
