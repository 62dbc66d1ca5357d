"""Child process: a base model and its adapters on this machine, behind OpenAI's chat protocol and vLLM's adapter route.

    python -m potstill.serving.backends.embedded --base LOCATION [--revision R] --ready FILE

It listens on 127.0.0.1 and any free port, writes `{"url": …}` to FILE once the model is loaded, and ends with its parent.
Where POTSTILL_BACKEND_KEY is set, every request must carry it as a bearer token.

One worker thread generates, one answer at a time, through `StudentGenerator`: what was evaluated is what is served. So
every answer is greedy. `temperature` and `top_p` are accepted, because clients send them unasked, but they are not
followed, and each such answer names them in the header `x-potstill-not-followed`. What would change the meaning of an
answer (`n`, `stop`, `response_format`, `logprobs`, penalties, a forced tool) is refused with 400.
"""

import argparse
import asyncio
import hmac
import json
import os
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from potstill.artifacts import write_atomically
from potstill.serving.protocol import (
    DONE,
    EXCEPTION_HANDLERS,
    ApiError,
    ChatRequest,
    chunk,
    completion,
    event,
    parse_chat,
    read_object,
    usage,
)
from potstill.serving.server import bind, run_app, stop_event, url_of
from potstill.student.generator import Generated, StudentGenerator
from potstill.subprocesses import exit_with_parent

BASE_MODEL = "base"
DEFAULT_MAX_TOKENS = 512
KEY_VARIABLE = "POTSTILL_BACKEND_KEY"
DISCONNECT_POLL_SECONDS = 0.25

T = TypeVar("T")


class _Answer(NamedTuple):
    """An answer that is being generated."""

    pieces: "asyncio.Queue[str | None]"
    """Text as it comes; None when there is no more."""
    done: "asyncio.Future[Generated]"
    given_up: threading.Event
    """Set where nobody reads any more: generation ends with the next token."""


class EmbeddedApp:
    """The routes; see the module."""

    def __init__(self, generator: StudentGenerator, key: str | None) -> None:
        self._generator = generator
        self._key = key
        self._directories: dict[str, str] = {}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generate")
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/load_lora_adapter", self.load_adapter, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/health", self.health),
            ],
            exception_handlers=EXCEPTION_HANDLERS,
        )

    async def health(self, request: Request) -> Response:
        self._authorise(request)
        return Response()

    async def models(self, request: Request) -> Response:
        self._authorise(request)
        base = {"id": BASE_MODEL, "object": "model", "root": BASE_MODEL, "parent": None}
        adapters = [
            {"id": name, "object": "model", "root": directory, "parent": BASE_MODEL}
            for name, directory in self._directories.items()
        ]
        return JSONResponse({"object": "list", "data": [base, *adapters]})

    async def load_adapter(self, request: Request) -> Response:
        """Body and answer of vLLM's runtime route: `{lora_name, lora_path}`; here, loading again changes nothing."""
        self._authorise(request)
        content = await read_object(request)
        name, directory = content.get("lora_name"), content.get("lora_path")
        if not isinstance(name, str) or not isinstance(directory, str) or not name or name == BASE_MODEL:
            raise ApiError(400, "lora_name and lora_path are needed, as text", code="invalid_value")
        if self._directories.get(name, directory) != directory:
            raise ApiError(
                400, f"{name} is loaded from {self._directories[name]}: choose another name", code="conflict"
            )
        try:
            await self._work(lambda: self._generator.load_adapter(name, Path(directory)))
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ApiError(400, f"{directory} cannot be loaded: {error}", code="adapter_not_loaded") from None
        self._directories[name] = directory
        return Response(f"Success: LoRA adapter '{name}' added successfully.")

    async def chat(self, request: Request) -> Response:
        self._authorise(request)
        asked = parse_chat(await read_object(request))
        adapter = None if asked.model == BASE_MODEL else asked.model
        if adapter is not None and adapter not in self._directories:
            raise ApiError(404, f"no adapter {adapter} is loaded", code="model_not_found", param="model")
        prompt = await self._encode(asked)
        answer = self._start(prompt, adapter, self._limit(asked, len(prompt)))
        headers = {"x-potstill-not-followed": ", ".join(asked.not_followed)} if asked.not_followed else {}
        answer_id, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        if asked.stream:
            events = self._events(asked, answer, answer_id, created)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        while not answer.done.done():
            await asyncio.wait({answer.done}, timeout=DISCONNECT_POLL_SECONDS)
            if await request.is_disconnected():
                answer.given_up.set()
        return JSONResponse(completion(answer_id, created, asked.model, await answer.done), headers=headers)

    def _authorise(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        if self._key is not None and not hmac.compare_digest(given.encode(), f"Bearer {self._key}".encode()):
            raise ApiError(401, "this port belongs to `potstill serve`: ask the gateway", code="invalid_api_key")

    async def _encode(self, asked: ChatRequest) -> list[int]:
        from jinja2 import TemplateError

        conversation = asked.conversation()
        try:
            return await self._work(lambda: self._generator.encode(conversation))
        except (TemplateError, TypeError, KeyError, ValueError, AttributeError) as error:
            message = f"the student's chat template cannot render these messages: {error}"
            raise ApiError(400, message, code="invalid_value", param="messages") from None

    def _limit(self, asked: ChatRequest, prompt_tokens: int) -> int:
        limit = asked.token_limit or DEFAULT_MAX_TOKENS
        context = self._generator.context_tokens
        if context is None:
            return limit
        if prompt_tokens >= context:
            message = f"the prompt has {prompt_tokens} tokens, the student reads fewer than {context}: shorten it"
            raise ApiError(400, message, code="context_length_exceeded", param="messages")
        return min(limit, context - prompt_tokens)

    def _start(self, prompt: list[int], adapter: str | None, max_tokens: int) -> _Answer:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        given_up = threading.Event()

        def on_text(piece: str) -> bool:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)
            return not given_up.is_set()

        def generate() -> Generated:
            if given_up.is_set():
                return Generated("", "stop", len(prompt), 0)
            try:
                return self._generator.answer(prompt, adapter=adapter, max_tokens=max_tokens, on_text=on_text)
            finally:
                loop.call_soon_threadsafe(pieces.put_nowait, None)

        return _Answer(pieces, loop.run_in_executor(self._worker, generate), given_up)

    async def _events(self, asked: ChatRequest, answer: _Answer, answer_id: str, created: int) -> AsyncIterator[bytes]:
        def made(delta: dict[str, Any] | None, finish_reason: str | None = None) -> dict[str, Any]:
            return chunk(answer_id, created, asked.model, delta, finish_reason)

        try:
            yield event(made({"role": "assistant", "content": ""}))
            while (piece := await answer.pieces.get()) is not None:
                yield event(made({"content": piece}))
            generated = await answer.done
            yield event(made({}, generated.finish_reason))
            if asked.stream_options is not None and asked.stream_options.include_usage:
                yield event({**made(None), "usage": usage(generated)})
            yield DONE
        finally:
            answer.given_up.set()

    async def _work(self, call: Callable[[], T]) -> T:
        """Run where nothing else touches the model and its tokenizer."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, call)


async def _serve(generator: StudentGenerator, ready: Path) -> None:
    app = EmbeddedApp(generator, os.environ.get(KEY_VARIABLE)).app
    with bind("127.0.0.1", 0) as sock:
        url = json.dumps({"url": url_of(sock)})
        await run_app(app, sock, stop_event(), lambda: write_atomically(ready, url), grace_seconds=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", required=True)
    parser.add_argument("--revision")
    parser.add_argument("--ready", type=Path, required=True)
    arguments = parser.parse_args()
    exit_with_parent()
    asyncio.run(_serve(StudentGenerator(arguments.base, arguments.revision), arguments.ready))
    os._exit(0)  # an answer that nobody waits for may still be generated: its thread must not hold the process
