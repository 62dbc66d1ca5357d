"""API keys: read when a request is about to leave, kept in memory, and given to their own host only.

A recipe says where a key is kept, never what it is: in a variable of the environment, or in a secret block, which a flow
reads. Recipes come from outside too, so a recipe alone sends no key to a host: `OWN_HOSTS` and `POTSTILL_KEY_HOSTS` decide.
"""

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from potstill.errors import NotAuthorisedError, UsageError
from potstill.llm.providers.base import Provider
from potstill.llm.reach import is_forbidden
from potstill.outbound import check_address
from potstill.roots import is_confined
from potstill.texts import masked

KEY_HOSTS_VARIABLE = "POTSTILL_KEY_HOSTS"
TEACHER_HOSTS_VARIABLE = "POTSTILL_TEACHER_HOSTS"
"""Hosts that may be sent prompts, separated by commas or blanks; where it is not set, any."""
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
BLOCK_PREFIX = "block:"
"""What a block's name follows in `POTSTILL_KEY_HOSTS`; no variable of the environment is called so."""

LoadBlock = Callable[[str], str]
"""Reads a secret block by its name. Errors: `NotAuthorisedError` where there is none."""


def provider_key(
    provider: Provider,
    base_url: str,
    *,
    variable: str | None = None,
    block: str | None = None,
    load_block: LoadBlock | None = None,
) -> str | None:
    """The key that goes to a provider at this address: from the block or the variable that was named, else from the
    provider's own variable at its own address; None where there is none of these.

    Errors: those of `find_key` and `find_block_key`.
    """
    if block is not None:
        return find_block_key(block, base_url, load_block)
    return find_key(key_variable(variable, provider, base_url), base_url)


def key_variable(given: str | None, provider: Provider, base_url: str) -> str | None:
    """The variable that a teacher's key is read from: what was given, else the provider's own at its own address."""
    return given or (provider.default_key_env if base_url == provider.default_base_url else None)


def find_key(variable: str | None, base_url: str) -> str | None:
    """The key that may go to this address; None where none is asked for.

    Errors: `UsageError` for what is no address of an API; `NotAuthorisedError` where the variable is not set, or where
    the address is not the key's own. A key that no known provider owns may go to a server on this machine, unless the run
    is confined (see `potstill.roots`): a parameter could name any variable, and a server here that repeats what it is sent.
    Any other pair of key and host has to be named in `POTSTILL_KEY_HOSTS`, as `NAME=host` separated by commas.
    """
    host = _address(base_url)[0]
    if variable is None:
        return None
    own = OWN_HOSTS.get(variable)
    is_free_here = own is None and is_loopback(base_url) and not is_confined()
    _check_host(variable, base_url, own, is_allowed=is_free_here)
    key = os.environ.get(variable, "").strip()
    if not key:
        raise NotAuthorisedError(f"environment variable {variable} is not set: export it with the key for {host}")
    if not _may_be_a_key(key):
        raise NotAuthorisedError(f"environment variable {variable} holds characters that no key has: export it again")
    return key


def find_block_key(block: str, base_url: str, load_block: LoadBlock | None) -> str:
    """The key of a secret block that may go to this address.

    A block that does not go there is not even read.

    Errors: those of `check_block_host`; `NotAuthorisedError` also where nothing can read blocks, outside of a flow.
    """
    check_block_host(block, base_url)
    if load_block is None:
        raise NotAuthorisedError(
            f"secret block {block} is read by the flow only: here, name a variable of the environment in its place, "
            "with --set teacher.api_key_block=null --set teacher.api_key_env=NAME"
        )
    key = load_block(block).strip()
    if not _may_be_a_key(key):
        raise NotAuthorisedError(f"secret block {block} holds no key, but other characters or nothing: save it again")
    return key


def check_block_host(block: str, base_url: str) -> None:
    """Nobody can tell whose key a block holds, so it goes only where `POTSTILL_KEY_HOSTS` names the pair, as
    `block:NAME=host`, this machine not excepted.

    Errors: `NotAuthorisedError` for any other pair, and where the key would travel in plain text.
    """
    _check_host(f"{BLOCK_PREFIX}{block}", base_url, None)


def check_teacher_host(base_url: str) -> None:
    """Where `POTSTILL_TEACHER_HOSTS` is set, prompts go to the hosts that it names and to the known providers' own only.

    Errors: `NotAuthorisedError` for another host.
    """
    named = os.environ.get(TEACHER_HOSTS_VARIABLE)
    if named is None:
        return
    host, port, _ = _address(base_url)
    allowed = {part.lower() for part in re.split(r"[,\s]+", named) if part} | set(OWN_HOSTS.values())
    if not {host, f"{host}:{port}"} & allowed:
        raise NotAuthorisedError(f"no prompt goes to {host}: if that is meant, name it in {TEACHER_HOSTS_VARIABLE}")


def without_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child that asks no teacher: without the variables that are known to hold a key."""
    named = {name.strip() for name, _, _ in _pairs()}
    return {name: value for name, value in environment.items() if name not in named and name not in OWN_HOSTS}


def is_loopback(base_url: str) -> bool:
    """Whether an address lies on this machine."""
    host = _address(base_url)[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_host(name: str, base_url: str, own: str | None, *, is_allowed: bool = False) -> None:
    """Errors: `NotAuthorisedError` where a key does not belong to a host, or would travel in plain text."""
    host, port, scheme = _address(base_url)
    granted = _granted(name) | ({own} if own else set())
    if not is_allowed and not {host, f"{host}:{port}"} & granted:
        whose = f"it belongs to {own}" if own else "it is bound to no host"
        raise NotAuthorisedError(
            f"{name} does not go to {host}: {whose}. If that is meant, set {KEY_HOSTS_VARIABLE}={name}={host}"
        )
    if scheme != "https" and not is_loopback(base_url):
        raise NotAuthorisedError(f"{name} does not go over plain http to {host}: use https")


def _may_be_a_key(key: str) -> bool:
    return bool(key) and key.isascii() and key.isprintable()


def _address(base_url: str) -> tuple[str, int | None, str]:
    """Host, port and scheme.

    Errors: `UsageError` for what is no plain address; `NotAuthorisedError` for one where no teacher can be.
    """
    try:
        check_address(base_url)
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in {"http", "https"} or not host or parts.username or parts.password:
        raise UsageError(
            f"base_url {masked(base_url)!r}: give an address such as https://api.example.com/v1, plainly: no user, "
            "no query, no fragment, no letter beyond ASCII"
        )
    if is_forbidden(host):
        raise NotAuthorisedError(
            f"base_url {base_url}: a link-local address, where clouds keep the credentials of their machines: no teacher is there"
        )
    return host.lower(), port, parts.scheme


def _granted(name: str) -> set[str]:
    return {host.strip().lower() for known, _, host in _pairs() if known.strip() == name and host.strip()}


def _pairs() -> list[tuple[str, str, str]]:
    return [pair.partition("=") for pair in os.environ.get(KEY_HOSTS_VARIABLE, "").split(",")]
