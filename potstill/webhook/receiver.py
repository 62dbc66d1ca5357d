"""The receiver's routes: POST /inbox/{recipe} and GET /health; docs/webhook.md lists every answer.

A 202 is sent once the prompts are on the disk. Nothing here waits for Prefect, and nothing logs what a body holds.
"""

import asyncio
import contextlib
import hashlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from potstill.errors import DataError, InboxError, NotAuthorisedError
from potstill.inbox import Inbox, Landing
from potstill.webhook.bodies import Body, Room
from potstill.webhook.config import WebhookConfig
from potstill.webhook.prompts import Inline, Reference, Sieve, read_body, read_lines
from potstill.webhook.rate import TokenBucket
from potstill.webhook.references import ReferenceReader
from potstill.webhook.signatures import ID, Signatures

BODIES = 32
"""Of the longest kind, fit into memory at once."""
COPIES = 16
"""Files that are copied or wait for that at once; each holds a connection, and no body."""
LANDING_THREADS = 8
COPYING_THREADS = 2
RETRY_SECONDS = 30
"""After an answer that says that the receiver cannot store for now."""
CROWDED_SECONDS = 5
"""After one that says that there is no room for now."""

T = TypeVar("T")
log = logging.getLogger(__name__)


class _RefusedError(Exception):
    """Becomes an answer. A 413 has no body: its sender is not known yet, and may still be sending."""

    def __init__(self, status: int, message: str, *, retry_after: float | None = None, close: bool = False) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.headers: dict[str, str] = {"connection": "close"} if close else {}
        if retry_after is not None:
            self.headers["retry-after"] = str(math.ceil(retry_after))

    def response(self) -> Response:
        if self.status == 413:
            return Response(status_code=413, headers=self.headers)
        return JSONResponse({"error": self.message}, self.status, self.headers)


class Receiver:
    """Takes webhooks into the inboxes.

    Args:
        inboxes: of each recipe that prompts may land for.
        signatures: who may send.
        workloads: what each recipe keeps, where it keeps one workload only.
    """

    def __init__(
        self,
        config: WebhookConfig,
        inboxes: Mapping[str, Inbox],
        signatures: Signatures,
        workloads: Mapping[str, str | None] | None = None,
    ) -> None:
        self._config = config
        self._workloads = workloads or {}
        self._inboxes = inboxes
        self._signatures = signatures
        self._is_stopping = False
        self._references = ReferenceReader(config.references.prefixes)
        self._bucket = TokenBucket(config.rate.per_second, config.rate.burst)
        self._room = Room(BODIES * config.max_body_bytes)
        self._num_copies = 0
        self._landing = ThreadPoolExecutor(LANDING_THREADS, "landing")
        self._copying = ThreadPoolExecutor(COPYING_THREADS, "copying")
        self.app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=self._lifespan)
        self.app.add_api_route("/inbox/{recipe}", self.receive, methods=["POST"], response_model=None)
        self.app.add_api_route("/health", self.health, methods=["GET"], response_model=None)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        yield
        self._is_stopping = True
        self._landing.shutdown()
        self._copying.shutdown(wait=False, cancel_futures=True)  # nobody was told that these were accepted

    async def health(self) -> Response:
        return JSONResponse({"status": "ok"})

    async def receive(self, recipe: str, request: Request) -> Response:
        """One webhook; see the module."""
        with self._room.open() as body:
            try:
                await self._read(request, body)
                webhook_id = await self._check(request, body)
                inbox = self._inboxes.get(recipe)
                if inbox is None:
                    raise _RefusedError(404, f"no recipe named {recipe[:80]!r} has an inbox here")  # noqa: TRY301
                return await self._land(inbox, webhook_id, request.headers.get("content-type", ""), body)
            except _RefusedError as refused:
                return refused.response()

    async def _read(self, request: Request, body: Body) -> None:
        """The body, never more of it than may be."""
        most = self._config.max_body_bytes
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal() or len(declared) > 18 or int(declared) > most:
            raise _RefusedError(413, "", close=True)
        try:
            await body.read(request.stream(), most, self._config.body_seconds)
        except DataError:
            raise _RefusedError(413, "", close=True) from None
        except InboxError as error:
            raise _RefusedError(503, str(error), retry_after=CROWDED_SECONDS, close=True) from None
        except TimeoutError:
            seconds = f"{self._config.body_seconds:g} s"
            raise _RefusedError(408, f"the body took longer than {seconds}", close=True) from None
        except ClientDisconnect:
            raise _RefusedError(499, "gone") from None

    async def _check(self, request: Request, body: Body) -> str:
        """The id of a webhook whose sender may send it now. Only signed ones count against the rate."""
        try:
            webhook_id = await self._in_thread(
                self._landing, lambda: self._signatures.check(request.headers, body.content)
            )
        except NotAuthorisedError as error:
            raise _RefusedError(401, str(error)) from None
        if (wait := self._bucket.take()) > 0:
            raise _RefusedError(429, "too many webhooks: send this one again later", retry_after=wait)
        if not ID.fullmatch(webhook_id):
            raise _RefusedError(422, "webhook-id: up to 256 letters, digits and signs, no full stop and no space")
        return webhook_id

    async def _land(self, inbox: Inbox, webhook_id: str, content_type: str, body: Body) -> Response:
        sieve = Sieve(self._workloads.get(inbox.path.name))
        try:
            digest = await self._in_thread(self._landing, lambda: hashlib.sha256(body.content).hexdigest())
            found = await self._in_thread(self._landing, lambda: inbox.find(webhook_id, digest))
            if found is not None:
                return _answer(found, sieve)
            content = await self._in_thread(self._landing, lambda: read_body(content_type, body.content))
            lines = sieve.usable(self._lines(content))
            if isinstance(content, Reference):
                body.release()  # a copy may take minutes
                landing = await self._copy(lambda: inbox.land(webhook_id, digest, lines))
            else:
                landing = await self._in_thread(self._landing, lambda: inbox.land(webhook_id, digest, lines))
        except NotAuthorisedError as error:
            raise _RefusedError(403, str(error)) from None
        except DataError as error:
            raise _RefusedError(422, str(error)) from None
        except InboxError as error:
            log.error("a webhook for %s was not accepted: %s", inbox.path.name, error)  # noqa: TRY400
            message = "the prompts cannot be stored for now: send them again"
            raise _RefusedError(503, message, retry_after=RETRY_SECONDS) from None
        return _answer(landing, sieve)

    async def _copy(self, work: Callable[[], T]) -> T:
        if self._num_copies >= COPIES:
            raise _RefusedError(503, f"{COPIES} files are being copied: send this one later", retry_after=RETRY_SECONDS)
        self._num_copies += 1
        try:
            return await self._in_thread(self._copying, work)
        finally:
            self._num_copies -= 1

    def _lines(self, content: Inline | Reference) -> Iterator[bytes]:
        if isinstance(content, Inline):
            yield from content.lines
            return
        with self._references.open(content.uri) as file:
            for line in read_lines(file, self._config.references.max_bytes):
                if self._is_stopping:
                    raise InboxError("the receiver is stopped")
                yield line

    async def _in_thread(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work)


def _answer(landing: Landing, sieve: Sieve) -> Response:
    rejected: dict[str, Any] = {"rejected": sieve.num_rejected, "errors": sieve.errors}
    match landing.outcome:
        case "landed":
            return JSONResponse({"accepted": landing.num_prompts, **rejected}, 202)
        case "duplicate":
            return JSONResponse({"duplicate": True}, 202)
        case "conflict":
            message = "another body was accepted under this webhook-id: give each message its own"
            return JSONResponse({"error": message}, 409)
        case "empty":
            return JSONResponse({"error": "no line can be used", "accepted": 0, **rejected}, 422)
