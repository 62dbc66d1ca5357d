from collections.abc import Callable

import pytest

from potstill.errors import NotAuthorisedError, UsageError
from potstill.llm.keys import find_block_key, find_key, is_loopback, provider_key, without_keys
from potstill.llm.providers import PROVIDERS

OPENAI = "https://api.openai.com/v1"


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-own")
    monkeypatch.setenv("MY_KEY", " mine\n")
    monkeypatch.delenv("POTSTILL_KEY_HOSTS", raising=False)


def test_no_variable_no_key() -> None:
    assert find_key(None, "http://anywhere.example") is None


def test_a_provider_key_goes_to_its_own_host() -> None:
    assert find_key("OPENAI_API_KEY", OPENAI) == "sk-own"


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/v1",
        "https://api.openai.com.evil.example/v1",
        "https://evil.example/api.openai.com",
        "http://127.0.0.1:8000/v1",
        "http://localhost/v1",
    ],
)
def test_a_provider_key_goes_to_no_other_host(url: str) -> None:
    with pytest.raises(NotAuthorisedError, match=r"it belongs to api\.openai\.com.*POTSTILL_KEY_HOSTS=OPENAI_API_KEY="):
        find_key("OPENAI_API_KEY", url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://localhost:1", "http://[::1]:1/v1"])
def test_a_key_of_nobody_goes_to_this_machine(url: str) -> None:
    assert is_loopback(url)
    assert find_key("MY_KEY", url) == "mine"


@pytest.mark.parametrize(
    "url", ["https://llm.example/v1", "http://127.0.0.1.evil.example/v1", "http://localhost.evil.example"]
)
def test_a_key_of_nobody_goes_to_no_host_that_was_not_named(url: str) -> None:
    assert not is_loopback(url)
    with pytest.raises(NotAuthorisedError, match="bound to no host"):
        find_key("MY_KEY", url)


@pytest.mark.parametrize("hosts", ["MY_KEY=llm.example", "A=b, MY_KEY = LLM.example ", "MY_KEY=llm.example:8443"])
def test_a_named_pair_is_allowed(monkeypatch: pytest.MonkeyPatch, hosts: str) -> None:
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", hosts)
    assert find_key("MY_KEY", "https://llm.example:8443/v1") == "mine"


@pytest.mark.parametrize("hosts", ["OTHER=llm.example", "MY_KEY=other.example", "MY_KEY=llm.example:1", "MY_KEY="])
def test_another_pair_allows_nothing(monkeypatch: pytest.MonkeyPatch, hosts: str) -> None:
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", hosts)
    with pytest.raises(NotAuthorisedError):
        find_key("MY_KEY", "https://llm.example:8443/v1")


def test_a_key_never_leaves_this_machine_in_plain_text() -> None:
    with pytest.raises(NotAuthorisedError, match="use https"):
        find_key("OPENAI_API_KEY", "http://api.openai.com/v1")


@pytest.mark.parametrize("value", ["", "  "])
def test_a_missing_key_names_its_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(NotAuthorisedError, match="OPENAI_API_KEY is not set: export it"):
        find_key("OPENAI_API_KEY", OPENAI)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.openai.com/v1",
        "ftp://api.openai.com",
        "https://",
        "https://user:pw@api.openai.com/v1",
        "http://x:port/",
    ],
)
def test_an_address_that_is_none_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="give an address such as"):
        find_key("OPENAI_API_KEY", url)


def test_no_message_holds_the_key() -> None:
    with pytest.raises(NotAuthorisedError) as caught:
        find_key("OPENAI_API_KEY", "https://evil.example")
    assert "sk-own" not in str(caught.value)


@pytest.mark.parametrize("value", ["sk-“own”", "sk-a\nsk-b", "sk-a\x07"])
def test_a_key_that_cannot_be_one_is_refused_before_it_travels(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(NotAuthorisedError, match="characters that no key has") as caught:
        find_key("OPENAI_API_KEY", OPENAI)
    assert "sk-" not in str(caught.value)


def test_an_address_is_checked_without_a_key_too() -> None:
    with pytest.raises(UsageError, match="give an address such as"):
        find_key(None, "https://user:pw@llm.example/v1")


@pytest.mark.parametrize(
    "url",
    [
        "https://me:pw-5@llm.example/v1",
        "https://me:pw-5/x@llm.example",
        "https://me:pw-5//x@llm.example",
        "me:pw-5@llm.example",
        "https:/me:pw-5@llm.example",
        "ftp://me:a@pw-5@llm.example",
    ],
)
@pytest.mark.parametrize(
    "check", [lambda url: find_key(None, url), is_loopback, lambda url: find_block_key("b", url, read)]
)
def test_no_message_holds_what_stands_before_the_host_of_an_address(check: Callable[[str], object], url: str) -> None:
    with pytest.raises(UsageError, match=r"…@llm\.example.*give an address such as") as caught:
        check(url)
    assert "pw-5" not in str(caught.value)


HOST = "https://llm.example/v1"


def read(name: str) -> str:
    return f" key-of-{name}\n"


def must_not_read(name: str) -> str:
    raise AssertionError(f"{name} was read")


def test_a_block_goes_to_the_host_that_is_named_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", "block:mine=llm.example")
    assert find_block_key("mine", HOST, read) == "key-of-mine"


@pytest.mark.parametrize("hosts", ["", "mine=llm.example", "block:mine=other.example", "block:other=llm.example"])
def test_a_block_that_is_not_named_for_a_host_is_not_even_read(monkeypatch: pytest.MonkeyPatch, hosts: str) -> None:
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", hosts)
    with pytest.raises(NotAuthorisedError, match=r"POTSTILL_KEY_HOSTS=block:mine=llm\.example"):
        find_block_key("mine", HOST, must_not_read)


def test_a_block_does_not_go_to_this_machine_by_itself() -> None:
    """A recipe by webhook could name any block, and any port here."""
    with pytest.raises(NotAuthorisedError, match=r"block:mine does not go to 127\.0\.0\.1: it is bound to no host"):
        find_block_key("mine", "http://127.0.0.1:8000/v1", must_not_read)


def test_a_block_never_leaves_this_machine_in_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", "block:mine=llm.example")
    with pytest.raises(NotAuthorisedError, match="use https"):
        find_block_key("mine", "http://llm.example/v1", must_not_read)


def test_a_pair_for_a_block_is_none_for_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", "block:MY_KEY=llm.example")
    with pytest.raises(NotAuthorisedError, match=r"MY_KEY does not go to llm\.example"):
        find_key("MY_KEY", HOST)


def test_outside_of_a_flow_nothing_reads_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", "block:mine=llm.example")
    with pytest.raises(NotAuthorisedError, match=r"read by the flow only: here, name a variable.* --set"):
        find_block_key("mine", HOST, None)


@pytest.mark.parametrize("value", ["", " ", "sk-“own”", "sk-a\nsk-b"])
def test_a_block_that_holds_no_key_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", "block:mine=llm.example")
    with pytest.raises(NotAuthorisedError, match="secret block mine holds no key") as caught:
        find_block_key("mine", HOST, lambda _: value)
    assert "sk-" not in str(caught.value)


def test_a_block_comes_before_the_providers_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", "block:mine=api.openai.com")
    assert provider_key(PROVIDERS["openai"], OPENAI, block="mine", load_block=read) == "key-of-mine"
    assert provider_key(PROVIDERS["openai"], OPENAI) == "sk-own"
    assert provider_key(PROVIDERS["openai_compatible"], HOST) is None


def test_a_child_inherits_no_key_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", "MY_KEY=llm.example, block:mine=llm.example")
    environment = {"OPENAI_API_KEY": "a", "MY_KEY": "b", "HF_TOKEN": "c", "PATH": "d"}
    assert without_keys(environment) == {"HF_TOKEN": "c", "PATH": "d"}
