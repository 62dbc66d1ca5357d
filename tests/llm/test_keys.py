import pytest

from potstill.errors import NotAuthorisedError, UsageError
from potstill.llm.keys import find_key, is_loopback

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
