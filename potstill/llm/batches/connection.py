"""One HTTP connection to a batch endpoint: each call once, what a lost answer means, and where the key may go."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import aiohttp
import httpx
import orjson

from potstill.errors import PermanentTeacherError, PotstillError
from potstill.llm.batches.spool import Spool
from potstill.llm.causes import is_unknown_host
from potstill.llm.endpoint import CONNECT_SECONDS, Endpoint, is_late, trusted
from potstill.llm.providers.base import Failure
from potstill.llm.providers.errors import error_for_the_run
from potstill.llm.reach import guarded_resolver
from potstill.llm.retrying import UnansweredError

T = TypeVar("T")

SLOWEST_BYTES_PER_SECOND = 100_000
"""An upload that is slower than this is given up."""
NOT_THERE = frozenset({404, 405})


class LostAnswerError(UnansweredError):
    """Nobody can say whether the call was carried out."""


class NotThereError(PermanentTeacherError):
    """Nothing lies at this address of the endpoint, or nothing that takes such a call."""


class Connection:
    """Calls of one provider, each made once; retrying is the caller's.

    Redirects are never followed, and the key goes to no other address than `base_url`; where the server echoes it, it is
    masked.
    """

    def __init__(self, endpoint: Endpoint, timeout_seconds: float) -> None:
        self.provider = endpoint.provider
        self._endpoint = endpoint
        self._base_url = httpx.URL(endpoint.base_url)
        self._timeout_seconds = timeout_seconds
        self._http: httpx.AsyncClient | None = None
        self._has_answered = False

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        from httpx_aiohttp import AiohttpTransport

        async with httpx.AsyncClient(
            transport=AiohttpTransport(verify=trusted(), client=_session),
            headers=self._endpoint.headers,
            timeout=httpx.Timeout(self._timeout_seconds, connect=min(CONNECT_SECONDS, self._timeout_seconds)),
            follow_redirects=False,
        ) as self._http:
            yield

    async def call(
        self,
        method: str,
        path: str,
        read: Callable[[Any], T],
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        spool: Spool | None = None,
        form: Mapping[str, str] | None = None,
    ) -> T:
        """What one call returns: `read` makes it from the JSON, and what it trips over counts as a lost answer.

        A spool is sent as the JSON body, or as the file of a form where there are other fields. Errors: `LostAnswerError`
        where it may have been carried out, `UnansweredError` where it certainly was not.
        """
        body = _body(json, spool, form)
        seconds = self._timeout_seconds + (spool.size if spool else 0) / SLOWEST_BYTES_PER_SECOND
        with self._losing_answers():
            async with asyncio.timeout(seconds):
                response = await self._client.request(method, self._address(path), params=params, **body)
        self._has_answered = True
        self._check(response)
        try:
            return read(self._endpoint.mask.read_json(response.content))
        except (LookupError, TypeError, ValueError, AttributeError):
            raise LostAnswerError(f"{self._base_url}: the answer to {method} {path} cannot be read") from None

    async def chunks(self, location: str) -> AsyncGenerator[bytes, None]:
        """What lies at a path, bit by bit. Errors: `LostAnswerError` where it is cut."""
        with self._losing_answers():
            async with self._client.stream("GET", self._address(location)) as response:
                if not response.is_success:
                    await response.aread()
                self._check(response)
                async for lines in self._endpoint.mask.clean_lines(response.aiter_bytes()):
                    yield lines

    def _address(self, path: str) -> httpx.URL:
        """Below `base_url`. Errors: `PermanentTeacherError` for an id that the server made up and no path can hold."""
        try:
            return httpx.URL(f"{self._base_url}{path}")
        except httpx.InvalidURL:
            raise PermanentTeacherError(f"{self._base_url}: {path!r} is no address") from None

    @property
    def _client(self) -> httpx.AsyncClient:
        assert self._http is not None
        return self._http

    @contextmanager
    def _losing_answers(self) -> Iterator[None]:
        """Whether the request ever left is not asked: whoever looks first is right in either case."""
        try:
            yield
        except PotstillError:  # some are OSErrors too, and say all there is to say
            raise
        except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            if is_unknown_host(error, was_known=self._has_answered):
                raise PermanentTeacherError(f"no host named {self._base_url.host}: check base_url") from None
            if is_late(error):
                raise LostAnswerError(f"{self._base_url}: no answer in time") from None
            said = self._endpoint.describe(error)
            raise LostAnswerError(f"{self._base_url}: connection lost: {said}") from None

    def _check(self, response: httpx.Response) -> None:
        if not response.is_success:
            body = self._endpoint.parse(response.content)
            failure = self.provider.read_error(response.status_code, body, response.headers)
            if response.status_code in NOT_THERE and failure.cause == "run":
                raise NotThereError(f"{self._base_url}: {failure.message}")
            raise self._error(failure)

    def _error(self, failure: Failure) -> Exception:
        message = f"{self._base_url}: {failure.message}"
        if failure.cause == "request":
            return PermanentTeacherError(message)
        is_refused = failure.cause == "rate_limit"
        unanswered = (UnansweredError if is_refused else LostAnswerError)(message, failure.retry_after_seconds)
        return error_for_the_run(failure, message) or unanswered


def _session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(ssl=trusted(), resolver=guarded_resolver())
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)


def _body(json: Any, spool: Spool | None, form: Mapping[str, str] | None) -> dict[str, Any]:
    if spool is not None and form is not None:
        return {"data": form, "files": {"file": ("requests.jsonl", spool.file, "application/jsonl")}}
    if spool is not None:
        headers = {"content-type": "application/json", "content-length": str(spool.size)}
        return {"content": _asynchronous(spool.chunks()), "headers": headers}
    if json is not None:
        return {"content": orjson.dumps(json), "headers": {"content-type": "application/json"}}
    return {}


async def _asynchronous(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
