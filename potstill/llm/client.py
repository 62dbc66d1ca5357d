"""The one client of chat-completion endpoints: teacher, student and judge are all asked through it."""

import asyncio
import socket
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp
import httpx
import orjson

from potstill.llm.keys import find_key, key_variable
from potstill.llm.messages import ChatRequest, Reply
from potstill.llm.providers import PROVIDERS
from potstill.llm.providers.base import Failure

CONNECT_SECONDS = 10.0
"""How long making a connection may take, where the whole request may take longer."""


class Attempt(NamedTuple):
    """What came of one HTTP request."""

    outcome: Reply | Failure
    http_status: int | None
    """None where no status line came back."""
    may_be_billed: bool
    """True where nobody can say whether the provider counted it: cut off, timed out, unreadable."""


class ChatClient:
    """Asks one endpoint, each request once; retrying is the caller's.

    Redirects are never followed. The key is read when the client opens, and goes to its own host only.

    Errors: `NotAuthorisedError` for a key that is missing or another host's.
    """

    def __init__(
        self,
        provider: str,
        base_url: str | None,
        *,
        api_key_env: str | None = None,
        concurrency: int = 16,
        timeout_seconds: float = 120.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.provider = PROVIDERS[provider]
        self.base_url = (base_url or self.provider.default_base_url or "").rstrip("/")
        self._key = find_key(key_variable(api_key_env, self.provider, self.base_url), self.base_url)
        self._timeout_seconds = timeout_seconds
        self._concurrency = concurrency
        self._transport = transport
        self._http: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        from httpx_aiohttp import AiohttpTransport

        limits = httpx.Limits(max_connections=self._concurrency, max_keepalive_connections=self._concurrency)
        self._http = httpx.AsyncClient(
            transport=self._transport or AiohttpTransport(limits=limits),
            headers={"content-type": "application/json", **self.provider.headers(self._key)},
            timeout=httpx.Timeout(self._timeout_seconds, connect=min(CONNECT_SECONDS, self._timeout_seconds)),
            follow_redirects=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._http is not None
        await self._http.aclose()

    def encode(self, request: ChatRequest) -> bytes:
        """The body of a request; its length bounds the prompt's tokens."""
        return orjson.dumps(self.provider.body(request))

    async def ask(self, body: bytes) -> Attempt:
        """Send one encoded request. Every failure is a value, so that the caller can account for it."""
        assert self._http is not None
        try:
            async with asyncio.timeout(self._timeout_seconds):
                response = await self._http.post(self.base_url + self.provider.path(), content=body)
        except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            return self._unsent(error) or self._lost(error)
        return self._read(response)

    def _read(self, response: httpx.Response) -> Attempt:
        status = response.status_code
        body = _parse(response.content)
        if response.is_success:
            outcome = self.provider.read_reply(body)
            unreadable = isinstance(outcome, Failure) and outcome.usage is None
            return Attempt(outcome, status, may_be_billed=unreadable)
        failure = self.provider.read_error(status, body, response.headers.get("retry-after"))
        return Attempt(failure, status, may_be_billed=False)

    def _lost(self, error: BaseException) -> Attempt:
        """The attempt of a request that left, and whose answer did not come whole."""
        is_late = any(isinstance(cause, TimeoutError) for cause in _causes(error))
        message = f"no answer within {self._timeout_seconds:g} s" if is_late else f"connection lost: {_describe(error)}"
        return Attempt(Failure("transient", message), None, may_be_billed=True)

    def _unsent(self, error: BaseException) -> Attempt | None:
        """The attempt of a request that never left this machine; None where it may have.

        The transport calls every lost connection a ConnectTimeout: only what aiohttp raised tells which one was never made.
        """
        causes = list(_causes(error))
        if any(isinstance(cause, socket.gaierror) for cause in causes):
            host = httpx.URL(self.base_url).host
            return Attempt(Failure("run", f"no host named {host}: check base_url"), None, may_be_billed=False)
        never_made = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, httpx.ConnectError)
        if any(isinstance(cause, never_made) for cause in causes):
            failure = Failure("transient", f"no connection to {self.base_url}: {_describe(error)}")
            return Attempt(failure, None, may_be_billed=False)
        return None


def _causes(error: BaseException | None) -> Any:
    while error is not None:
        yield error
        yield from (inner for inner in (getattr(error, "os_error", None),) if inner is not None)
        error = error.__cause__ or error.__context__


def _parse(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return None


def _describe(error: BaseException) -> str:
    return str(error)[:160] or type(error).__name__
