"""Batches: the same answers at half the price, within a day. One file a provider's protocol."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from potstill.errors import UsageError
from potstill.llm.batches.anthropic import AnthropicBatches
from potstill.llm.batches.base import BatchProtocol
from potstill.llm.batches.calls import Calls
from potstill.llm.batches.connection import Connection
from potstill.llm.batches.openai import OpenAIBatches
from potstill.llm.echoes import KeyMask
from potstill.llm.keys import LoadBlock, provider_key
from potstill.llm.providers import PROVIDERS, address_of
from potstill.llm.retrying import RetryPolicy

PROTOCOLS: dict[str, Callable[[Calls], BatchProtocol]] = {
    "anthropic": AnthropicBatches,
    "openai": OpenAIBatches,
    "openai_compatible": OpenAIBatches,
}


@asynccontextmanager
async def open_batches(
    provider: str,
    base_url: str | None,
    *,
    api_key_env: str | None = None,
    api_key_block: str | None = None,
    load_block: LoadBlock | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float = 120.0,
    policy: RetryPolicy | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[BatchProtocol]:
    """The batch endpoint of a provider, while the context lasts.

    The timeout is for one answer, or for the next bytes of a download; an upload gets more by its size. More headers go
    with every call; those of the provider win. Tests inject the pause between attempts.

    Errors: `NotAuthorisedError` for a key that is missing or another host's; `UsageError` for a provider without batches.
    """
    if provider not in PROTOCOLS:
        raise UsageError(f"provider {provider!r} has no batches: known are {', '.join(PROTOCOLS)}")
    known = PROVIDERS[provider]
    address = address_of(known, base_url)
    key = provider_key(known, address, variable=api_key_env, block=api_key_block, load_block=load_block)
    more = {name.lower(): value for name, value in (headers or {}).items()}
    every = {"user-agent": "potstill", **more, **known.headers(key, address)}
    connection = Connection(known, address, every, timeout_seconds, KeyMask(key))
    async with connection.opened():
        yield PROTOCOLS[provider](Calls(connection, policy or RetryPolicy(), sleep))
