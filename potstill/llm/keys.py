"""API keys: read from the environment when a request is about to leave, and given to their own host only."""

import ipaddress
import os
from urllib.parse import urlsplit

from potstill.errors import NotAuthorisedError, UsageError
from potstill.llm.providers.base import Provider

KEY_HOSTS_VARIABLE = "POTSTILL_KEY_HOSTS"
OWN_HOSTS = {
    "OPENAI_API_KEY": "api.openai.com",
    "ANTHROPIC_API_KEY": "api.anthropic.com",
    "OPENROUTER_API_KEY": "openrouter.ai",
    "GEMINI_API_KEY": "generativelanguage.googleapis.com",
    "MISTRAL_API_KEY": "api.mistral.ai",
    "DEEPSEEK_API_KEY": "api.deepseek.com",
    "TOGETHER_API_KEY": "api.together.xyz",
    "GROQ_API_KEY": "api.groq.com",
    "FIREWORKS_API_KEY": "api.fireworks.ai",
}


def key_variable(given: str | None, provider: Provider, base_url: str) -> str | None:
    """The variable that a teacher's key is read from: what was given, else the provider's own at its own address."""
    return given or (provider.default_key_env if base_url == provider.default_base_url else None)


def find_key(variable: str | None, base_url: str) -> str | None:
    """The key that may go to this address; None where none is asked for.

    Errors: `UsageError` for what is no address of an API; `NotAuthorisedError` where the variable is not set, or where
    the address is not the key's own. A key that no known provider owns may go to a server on this machine; any other
    pair of key and host has to be named in `POTSTILL_KEY_HOSTS`, as `NAME=host` separated by commas.
    """
    host, port, scheme = _address(base_url)
    if variable is None:
        return None
    loopback = is_loopback(base_url)
    granted = _granted(variable) | ({OWN_HOSTS[variable]} if variable in OWN_HOSTS else set())
    allowed = bool({host, f"{host}:{port}"} & granted) or (loopback and variable not in OWN_HOSTS)
    if not allowed:
        own = f"it belongs to {OWN_HOSTS[variable]}" if variable in OWN_HOSTS else "it is bound to no host"
        raise NotAuthorisedError(
            f"{variable} does not go to {host}: {own}. If that is meant, set {KEY_HOSTS_VARIABLE}={variable}={host}"
        )
    if scheme != "https" and not loopback:
        raise NotAuthorisedError(f"{variable} does not go over plain http to {host}: use https")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise NotAuthorisedError(f"environment variable {variable} is not set: export it with the key for {host}")
    if not key.isascii() or not key.isprintable():
        raise NotAuthorisedError(f"environment variable {variable} holds characters that no key has: export it again")
    return key


def is_loopback(base_url: str) -> bool:
    """Whether an address lies on this machine."""
    host = _address(base_url)[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(base_url: str) -> tuple[str, int | None, str]:
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in {"http", "https"} or not host or parts.username or parts.password:
        raise UsageError(f"base_url {base_url!r}: give an address such as https://api.example.com/v1")
    return host.lower(), port, parts.scheme


def _granted(variable: str) -> set[str]:
    pairs = (pair.partition("=") for pair in os.environ.get(KEY_HOSTS_VARIABLE, "").split(","))
    return {host.strip().lower() for name, _, host in pairs if name.strip() == variable and host.strip()}
