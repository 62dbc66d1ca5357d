"""One HTTP connection to a batch endpoint: each call once, what a lost answer means, and where the key may go."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import aiohttp
import httpx
import orjson

from potstill.errors import NotAuthorisedError, PermanentTeacherError, PotstillError, TransientTeacherError
from potstill.llm.batches.spool import Spool
from potstill.llm.causes import causes, is_unknown_host
from potstill.llm.echoes import KeyMask
from potstill.llm.providers.base import Failure, Provider
from potstill.llm.retrying import UnansweredError

T = TypeVar("T")

CONNECT_SECONDS = 10.0
LONGEST_WAIT_SECONDS = 300.0
"""A server that asks for more ends the call: it goes on when the same is run again."""
SLOWEST_BYTES_PER_SECOND = 100_000
"""An upload that is slower than this is given up."""


class LostAnswerError(UnansweredError):
    """Nobody can say whether the call was carried out."""


class Connection:
    """Calls of one provider, each made once; retrying is the caller's.

    Redirects are never followed, and the key goes to no other address than `base_url`; where the server echoes it, it is
    masked.
    """

    def __init__(
        self, provider: Provider, base_url: str, headers: Mapping[str, str], timeout_seconds: float, mask: KeyMask
    ) -> None:
        self.provider = provider
        self._base_url = httpx.URL(base_url)
        self._headers = headers
        self._timeout_seconds = timeout_seconds
        self._mask = mask
        self._http: httpx.AsyncClient | None = None
        self._has_answered = False

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        from httpx_aiohttp import AiohttpTransport

        async with httpx.AsyncClient(
            transport=AiohttpTransport(),
            headers=self._headers,
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
            return read(self._mask.read_json(response.content))
        except (LookupError, TypeError, ValueError, AttributeError):
            raise LostAnswerError(f"{self._base_url}: the answer to {method} {path} cannot be read") from None

    async def chunks(self, location: str) -> AsyncGenerator[bytes, None]:
        """What lies at a location, bit by bit. Errors: `LostAnswerError` where it is cut."""
        with self._losing_answers():
            async with self._client.stream("GET", self._address(location)) as response:
                if not response.is_success:
                    await response.aread()
                self._check(response)
                async for lines in self._mask.clean_lines(response.aiter_bytes()):
                    yield lines

    def _address(self, path: str) -> httpx.URL:
        """Errors: `NotAuthorisedError` for an address at another host, where the key does not go."""
        if path.startswith("/"):
            return httpx.URL(str(self._base_url) + path)
        try:
            url = httpx.URL(path)
        except httpx.InvalidURL:
            raise PermanentTeacherError(f"{self._base_url}: results at {path!r}, which is no address") from None
        if (url.scheme, url.host, url.port) != (self._base_url.scheme, self._base_url.host, self._base_url.port):
            raise NotAuthorisedError(
                f"results at {path!r}: the key of {self._base_url.netloc.decode()} goes to no other host"
            )
        return url

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
            if any(isinstance(cause, TimeoutError) for cause in causes(error)):
                raise LostAnswerError(f"{self._base_url}: no answer in time") from None
            said = self._mask.clean_text(str(error))[:160] or type(error).__name__
            raise LostAnswerError(f"{self._base_url}: connection lost: {said}") from None

    def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        try:
            body = self._mask.read_json(response.content)
        except orjson.JSONDecodeError:
            body = None
        raise self._error(self.provider.read_error(response.status_code, body, response.headers))

    def _error(self, failure: Failure) -> Exception:
        message = f"{self._base_url}: {failure.message}"
        wait = failure.retry_after_seconds
        if failure.cause == "authorisation":
            return NotAuthorisedError(message)
        if failure.cause == "billing":
            return NotAuthorisedError(f"{message}: add credit or raise the limit, then run the same again")
        if failure.cause in {"request", "run"}:
            return PermanentTeacherError(message)
        if (wait or 0) > LONGEST_WAIT_SECONDS:
            return TransientTeacherError(f"{message}; it asks to wait {wait:.0f} s: run the same again then")
        return (UnansweredError if failure.cause == "rate_limit" else LostAnswerError)(message, wait)


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
