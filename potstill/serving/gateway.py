"""The gateway: one OpenAI-compatible address whose model names are releases.

`<recipe>` is the recipe's champion at the moment of the request, `<recipe>@<sha12>` that version. Aliases are read with
every request, so a release or a rollback counts from the next request on; one in flight ends on the version it began on.
Where releases lie in a bucket, `potstill.serving.watch` follows them.
Every answer names its version in `model` and in the header `x-potstill-version`. The backends' adapter routes are not
reachable from here.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import httpx
import orjson
from httpx_aiohttp import AiohttpTransport
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from potstill.errors import ArtifactError, NotAuthorisedError, PotstillError, ReleaseError, StoreUnreachableError
from potstill.release import Version, aliases, all_recipes, releases, resolve
from potstill.serving.pool import BackendPool
from potstill.serving.protocol import EXCEPTION_HANDLERS, ApiError, event, read_object
from potstill.serving.watch import ReleaseWatch

VERSION_HEADER = "x-potstill-version"
PASSED_HEADERS = ("x-potstill-not-followed",)
TIMEOUT = httpx.Timeout(600.0, connect=5.0)
"""A student on a CPU may work for minutes, and answers wait for each other."""

T = TypeVar("T")
log = logging.getLogger(__name__)


def backend_client() -> httpx.AsyncClient:
    """The client for the calls to backends; no proxy and no setting of the environment comes between."""
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(
        transport=AiohttpTransport(limits=limits, trust_env=False), timeout=TIMEOUT, trust_env=False
    )


class Gateway:
    """The routes; see the module.

    Args:
        home: the state directory whose releases it serves.
        pool: answers for them.
        client: for the calls to backends.
        watch: follows the releases that lie in a bucket; None where they lie below home.
    """

    def __init__(
        self, home: Path, pool: BackendPool, client: httpx.AsyncClient, watch: ReleaseWatch | None = None
    ) -> None:
        self._home = home
        self._watch = watch
        self._pool = pool
        self._client = client
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/models/{model}", self.model),
                Route("/health", self.health),
            ],
            exception_handlers=EXCEPTION_HANDLERS,
        )

    async def chat(self, request: Request) -> Response:
        content = await read_object(request)
        version = await self._resolve(content.get("model"))
        if not isinstance(content.get("messages"), list):
            raise ApiError(400, "messages: a list of messages is needed", code="missing_parameter", param="messages")
        content["model"] = version.name
        if content.get("max_tokens") is None and content.get("max_completion_tokens") is None:
            content["max_tokens"] = version.max_tokens
        answer = await _unless_abandoned(request, self._ask(version, _dumped(content)))
        headers = {name: answer.headers[name] for name in PASSED_HEADERS if name in answer.headers}
        headers[VERSION_HEADER] = version.name
        if answer.is_success and content.get("stream"):
            return StreamingResponse(_events(answer), media_type="text/event-stream", headers=headers)
        body = await _unless_abandoned(request, _read(answer))
        return Response(_named(body, version), answer.status_code, headers, media_type="application/json")

    async def models(self, _: Request) -> Response:
        data = self._all_entries() if self._watch is None else await asyncio.to_thread(self._all_entries)
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        version = await self._resolve(name)
        return JSONResponse(_entry(name, version))

    async def health(self, _: Request) -> Response:
        """200 where every backend that was started answers, else 503."""
        backends = self._pool.backends
        answers = await asyncio.gather(*(backend.healthy() for backend in backends.values()))
        states = {identity: "ok" if fine else "down" for identity, fine in zip(backends, answers, strict=True)}
        fine = all(answers)
        return JSONResponse({"status": "ok" if fine else "degraded", "backends": states}, 200 if fine else 503)

    async def _resolve(self, model: Any) -> Version:
        if not isinstance(model, str):
            raise ApiError(400, "model: the name of a release is needed", code="missing_parameter", param="model")
        try:
            return resolve(self._home, model) if self._watch is None else await self._watch.resolve(model)
        except ReleaseError as error:
            raise ApiError(404, str(error), code="model_not_found", param="model") from None
        except (StoreUnreachableError, NotAuthorisedError) as error:
            log.warning("%s", error)
            raise ApiError(503, f"{model} is not known here and the store does not answer", code="store_away") from None
        except ArtifactError as error:
            log.warning("%s", error)
            raise ApiError(503, f"{model} cannot be served: its files are damaged", code="release_damaged") from None

    async def _ask(self, version: Version, body: bytes) -> httpx.Response:
        try:
            backend = await self._pool.ready(version)
            headers = {**backend.headers, "content-type": "application/json"}
            url = f"{backend.url}/v1/chat/completions"
            request = self._client.build_request("POST", url, content=body, headers=headers)
            return await self._client.send(request, stream=True)
        except PotstillError as error:
            log.warning("%s", error)
            raise ApiError(503, f"{version.name} cannot answer now: {error}", code="backend_down") from None
        except httpx.TransportError:
            raise _ended() from None

    def _all_entries(self) -> list[dict[str, Any]]:
        try:
            return [entry for name in all_recipes(self._home) for entry in self._entries(name)]
        except (StoreUnreachableError, NotAuthorisedError):
            return [_entry(name, version) for name, version in self._watch.known()] if self._watch else []

    def _entries(self, recipe: str) -> list[dict[str, Any]]:
        versions = {version.version: version for version in releases(self._home, recipe)}
        champion = versions.get(aliases(self._home, recipe).champion or "")
        named = [] if champion is None else [_entry(recipe, champion)]
        return named + [_entry(version.name, version) for version in versions.values()]


def _entry(name: str, version: Version) -> dict[str, Any]:
    created = int(version.created_at.timestamp())
    return {"id": name, "object": "model", "created": created, "owned_by": "potstill", "root": version.name}


def _dumped(content: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(content)
    except orjson.JSONEncodeError as error:
        raise ApiError(400, f"the body is nested too deeply: {error}", code="invalid_json") from None


def _named(body: bytes, version: Version) -> bytes:
    """The answer with the version's name in `model`, whatever name the backend has for it."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise ApiError(502, f"the backend of {version.name} did not answer in JSON", code="backend_broken") from None
    if isinstance(content, dict) and "model" in content:
        content["model"] = version.name
    return orjson.dumps(content)


def _ended() -> ApiError:
    message = "the model process ended before it answered; it is started again: ask again in some seconds"
    return ApiError(503, message, code="backend_down")


async def _read(answer: httpx.Response) -> bytes:
    try:
        return await answer.aread()
    except httpx.TransportError:
        raise _ended() from None
    finally:
        await answer.aclose()


async def _events(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx.TransportError:
        yield b"\n\n" + event(_ended().body())
    finally:
        await answer.aclose()


async def _unless_abandoned(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, given up when the client goes away, so that nothing is generated for nobody."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        gone.cancel()
        working.cancel()


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
