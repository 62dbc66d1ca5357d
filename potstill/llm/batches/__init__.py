"""Batches: the same answers at half the price, within a day. One file a provider's protocol."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from potstill.errors import UsageError
from potstill.llm.batches.anthropic import AnthropicBatches
from potstill.llm.batches.base import BatchProtocol
from potstill.llm.batches.calls import Calls
from potstill.llm.batches.connection import Connection
from potstill.llm.batches.openai import OpenAIBatches
from potstill.llm.endpoint import Endpoint
from potstill.llm.retrying import RetryPolicy

PROTOCOLS: dict[str, Callable[[Calls], BatchProtocol]] = {
    "anthropic": AnthropicBatches,
    "openai": OpenAIBatches,
    "openai_compatible": OpenAIBatches,
}


@asynccontextmanager
async def open_batches(
    endpoint: Endpoint,
    *,
    timeout_seconds: float = 120.0,
    policy: RetryPolicy | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[BatchProtocol]:
    """The batch endpoint of a provider, while the context lasts.

    The timeout is for one answer, or for the next bytes of a download; an upload gets more by its size. Tests inject the
    pause between attempts.

    Errors: `UsageError` for a provider without batches.
    """
    provider = endpoint.provider.name
    if provider not in PROTOCOLS:
        raise UsageError(f"provider {provider!r} has no batches: known are {', '.join(PROTOCOLS)}")
    connection = Connection(endpoint, timeout_seconds)
    async with connection.opened():
        yield PROTOCOLS[provider](Calls(connection, policy or RetryPolicy(), sleep))
