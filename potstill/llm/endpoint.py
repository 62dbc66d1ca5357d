"""The endpoint that a client asks: its address, what every request to it carries, and what comes back without the key."""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from potstill.llm.causes import causes
from potstill.llm.echoes import KeyMask
from potstill.llm.keys import LoadBlock, check_teacher_host, key_variable, provider_key
from potstill.llm.providers import PROVIDERS, address_of
from potstill.llm.providers.base import Provider
from potstill.recipe import Teacher

if TYPE_CHECKING:
    import ssl

CONNECT_SECONDS = 10.0
"""How long making a connection may take, where the whole request may take longer."""
LONGEST_EXCUSE = 160


class Endpoint(NamedTuple):
    """One provider at one address, and the key for it, which the headers carry and the mask takes out of replies."""

    provider: Provider
    base_url: str
    headers: dict[str, str]
    mask: KeyMask
    key_name: str | None
    """Where the key is kept; None where there is none."""

    @property
    def key_remedy(self) -> str:
        """What a user may do where the key is not accepted."""
        if self.key_name is None:
            return "no key was sent: name the variable that holds it with --api-key-env or teacher.api_key_env"
        return f"check {self.key_name}"

    @property
    def host(self) -> str | None:
        return urlsplit(self.base_url).hostname

    @property
    def is_https(self) -> bool:
        return urlsplit(self.base_url).scheme == "https"

    def parse(self, content: bytes) -> Any:
        """What a body holds as JSON, without the key; None where it is none."""
        try:
            return self.mask.read_json(content)
        except orjson.JSONDecodeError:
            return None

    def describe(self, error: BaseException) -> str:
        """What the transport says of an error; that may quote the server."""
        return self.mask.clean_text(str(error))[:LONGEST_EXCUSE] or type(error).__name__


def open_endpoint(
    provider: str,
    base_url: str | None,
    *,
    api_key_env: str | None = None,
    api_key_block: str | None = None,
    load_block: LoadBlock | None = None,
    headers: Mapping[str, str] | None = None,
) -> Endpoint:
    """The endpoint with its key, which is read now.

    Args:
        provider: the name of its protocol, a key of `PROVIDERS`.
        base_url: None for the provider's own address.
        api_key_env: the variable that holds the key; None for the provider's own at its own address, else for no key.
        api_key_block: the secret block that holds it instead.
        load_block: reads that block.
        headers: more headers for every request; those of the provider win.

    Errors: `NotAuthorisedError` for a key that is missing or another host's, and for a host that `POTSTILL_TEACHER_HOSTS`
    does not name.
    """
    known = PROVIDERS[provider]
    address = address_of(known, base_url)
    check_teacher_host(address)
    key = provider_key(known, address, variable=api_key_env, block=api_key_block, load_block=load_block)
    more = {name.lower(): value for name, value in (headers or {}).items()}
    every = {"user-agent": "potstill", **more, **known.headers(key, address)}
    name = f"secret block {api_key_block}" if api_key_block else key_variable(api_key_env, known, address)
    return Endpoint(known, address, every, KeyMask(key), name)


def endpoint_of(teacher: Teacher, load_block: LoadBlock | None = None) -> Endpoint:
    """Where a teacher is asked. Errors: those of `open_endpoint`."""
    return open_endpoint(
        teacher.provider,
        teacher.base_url,
        api_key_env=teacher.api_key_env,
        api_key_block=teacher.api_key_block,
        load_block=load_block,
        headers=teacher.headers,
    )


def is_late(error: BaseException) -> bool:
    """Whether a request was given up because it took too long."""
    return any(isinstance(cause, TimeoutError) for cause in causes(error))


@cache
def trusted() -> "ssl.SSLContext":
    """The certificates that httpx trusts, so that one machine has one answer everywhere in Potstill; read once."""
    import httpx

    return httpx.create_ssl_context()
