"""The one client of chat-completion endpoints: teacher, student and judge are all asked through it."""

import re
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlencode

import aiohttp
import orjson

from potstill.llm.causes import causes, is_unknown_host, why_unconnected
from potstill.llm.endpoint import CONNECT_SECONDS, Endpoint, is_late, trusted
from potstill.llm.messages import ChatRequest, Reply
from potstill.llm.providers.base import Failure, Limit, LimitName
from potstill.llm.providers.errors import hidden_status
from potstill.llm.reach import guarded_resolver

IDLE_SECONDS = 4.0
"""A pooled connection that rests longer is closed: uvicorn, and so vLLM, would close it after 5 s, perhaps just as a
request leaves. HTTP/1.1 cannot tell whether such a request was read, so it is never sent again as if it were not."""
_VERSION = re.compile(r"/v\d")
LONGEST_REPLY_BYTES = 64 * 2**20
NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class Attempt(NamedTuple):
    """What came of one HTTP request."""

    outcome: Reply | Failure
    http_status: int | None
    """None where no status line came back; what it should have been where a 200 carries an error."""
    may_be_billed: bool
    """True where nobody can say whether the provider counted it: cut off, timed out, unreadable."""
    limits: Mapping[LimitName, Limit] = {}
    """The server's buckets, where the reply tells of them."""
    is_late: bool = False
    """Whether the time that a request may take ran out."""


class ChatClient:
    """Asks one endpoint, each request once; retrying is the caller's.

    Redirects are never followed; proxies, netrc and cookies of the environment are never used. Certificates are checked
    against certifi's, or what SSL_CERT_FILE and SSL_CERT_DIR name. The key goes to its own host only; where a reply or an
    error echoes it, it is masked before anything else sees it.

    Args:
        endpoint: see `open_endpoint`.
        api_version: `api-version` in the query, as Azure wants it.
        concurrency: connections at most.
        timeout_seconds: for one request in all, from waiting for a connection to the last byte.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        api_version: str | None = None,
        concurrency: int = 16,
        timeout_seconds: float = 120.0,
    ) -> None:
        self.provider = endpoint.provider
        self.base_url = endpoint.base_url
        self.key_remedy = endpoint.key_remedy
        self._endpoint = endpoint
        query = f"?{urlencode({'api-version': api_version})}" if api_version else ""
        self._url = self.base_url + self.provider.path() + query
        self._timeout_seconds = timeout_seconds
        self._concurrency = concurrency
        self._http: aiohttp.ClientSession | None = None
        self._has_answered = False

    async def __aenter__(self) -> Self:
        trust = trusted() if self._endpoint.is_https else True
        connector = aiohttp.TCPConnector(
            limit=self._concurrency, keepalive_timeout=IDLE_SECONDS, ssl=trust, resolver=guarded_resolver()
        )
        self._http = aiohttp.ClientSession(
            connector=connector,
            headers=self._endpoint.headers | {"content-type": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(self._timeout_seconds, sock_connect=CONNECT_SECONDS),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._http is not None
        await self._http.close()

    def encode(self, request: ChatRequest, *, cache_prefix: bool = False) -> bytes:
        """The body of a request; its length bounds the prompt's tokens. `cache_prefix`: see `Provider.body`."""
        return orjson.dumps(self.provider.body(request, cache_prefix=cache_prefix))

    async def ask(self, body: bytes) -> Attempt:
        """Send one encoded request. Every failure is a value, so that the caller can account for it."""
        assert self._http is not None
        try:
            async with self._http.post(self._url, data=body, allow_redirects=False) as response:
                content = await _read_whole(response)
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            return self._unsent(error) or self._lost(error)
        self._has_answered = True
        return self._read(response.status, content, response.headers)

    def _read(self, status: int, content: bytes | None, headers: Mapping[str, str]) -> Attempt:
        limits = self.provider.read_limits(headers)
        if content is None:
            message = f"malformed reply: longer than {LONGEST_REPLY_BYTES // 2**20} MiB"
            return Attempt(Failure("transient", message), status, may_be_billed=True, limits=limits)
        body = self._endpoint.parse(content)
        if not 200 <= status < 300:
            failure = self.provider.read_error(status, body, headers)
            if status in {404, 405}:
                failure = failure._replace(message=failure.message + self._where_base_url_ends())
            return Attempt(failure, status, may_be_billed=False, limits=limits)
        outcome = self.provider.read_reply(body)
        if isinstance(outcome, Failure) and (hidden := hidden_status(body)) is not None:
            failure = self.provider.read_error(hidden, body, headers)._replace(usage=outcome.usage)
            return Attempt(failure, hidden, may_be_billed=False, limits=limits)
        unreadable = isinstance(outcome, Failure) and outcome.usage is None
        return Attempt(outcome, status, may_be_billed=unreadable, limits=limits)

    def _where_base_url_ends(self) -> str:
        """What to say of an address that does not look like the base of an API."""
        path = self.provider.path()
        is_base = _VERSION.search(self.base_url) is not None and not self.base_url.endswith(path)
        return "" if is_base else f"; base_url ends before {path}, usually in /v1"

    def _lost(self, error: BaseException) -> Attempt:
        """The attempt of a request that left, and whose answer did not come whole."""
        late = is_late(error)
        lost = f"connection lost: {self._endpoint.describe(error)}"
        message = f"no answer within {self._timeout_seconds:g} s" if late else lost
        return Attempt(Failure("transient", message), None, may_be_billed=True, is_late=late)

    def _unsent(self, error: BaseException) -> Attempt | None:
        """The attempt of a request that never left this machine; None where it may have."""
        is_no_host = any(isinstance(cause, (UnicodeError, aiohttp.InvalidURL)) for cause in causes(error))
        if is_no_host or is_unknown_host(error, was_known=self._has_answered):
            message = f"no host named {self._endpoint.host}: check base_url and the network"
            return Attempt(Failure("run", message), None, may_be_billed=False)
        if isinstance(error, NEVER_SENT):
            late = f"none was made within {CONNECT_SECONDS:g} s" if is_late(error) else None
            why = late or why_unconnected(error) or self._endpoint.describe(getattr(error, "os_error", error))
            return Attempt(Failure("transient", f"no connection: {why}"), None, may_be_billed=False)
        return None


async def _read_whole(response: aiohttp.ClientResponse) -> bytes | None:
    """The body, unpacked; None, and the connection closed, where it is longer than any answer."""
    parts: list[bytes] = []
    size = 0
    while part := await response.content.readany():
        parts.append(part)
        size += len(part)
        if size > LONGEST_REPLY_BYTES:
            response.close()
            return None
    return b"".join(parts)
