"""OpenAI's chat protocol, as far as a student speaks it: requests checked, answers and errors in its shapes."""

from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from potstill.messages import as_text
from potstill.records import Message
from potstill.student.generator import Conversation, Generated

MAX_BODY_BYTES = 4 * 1024 * 1024
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class ApiError(Exception):
    """Becomes an error body of OpenAI's form."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param

    def response(self) -> Response:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        headers = {"retry-after": "2"} if self.status == 503 else {}
        return JSONResponse(self.body(kind), self.status, headers)

    def body(self, kind: str = "server_error") -> dict[str, Any]:
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _TextFormat(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]


class ChatRequest(BaseModel):
    """What the embedded backend can do. A parameter that would change what is asked, and cannot be honoured, is refused."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[Message] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    """Rendered by the chat template; a call comes back as the text that the student wrote."""
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Accepted and not followed, see `not_followed`."""
    seed: int | None = None
    """Honoured by being greedy: the same prompt has the same answer."""
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None

    n: Literal[1] | None = None
    stop: None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    response_format: _TextFormat | None = None
    tool_choice: Literal["auto"] | None = None
    parallel_tool_calls: Literal[True] | None = None
    logit_bias: dict[str, float] | None = Field(default=None, max_length=0)
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def not_followed(self) -> list[str]:
        """The sampling parameters that a greedy answer does not follow; each such answer names them in a header."""
        return [
            name for name, greedy in (("temperature", 0), ("top_p", 1)) if getattr(self, name) not in (None, greedy)
        ]

    def conversation(self) -> Conversation:
        """The messages with text parts joined, as the chat template wants them."""
        return Conversation([_plain(message, place) for place, message in enumerate(self.messages)], self.tools)


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body. Errors: `ApiError` 400 where there is none, 413 where it is over 4 MiB."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, "the body is over 4 MiB: send less", code="request_too_large")
    try:
        content = orjson.loads(bytes(body))
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from None
    if not isinstance(content, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return content


def parse_chat(content: dict[str, Any]) -> ChatRequest:
    """Check a request for a chat completion. Errors: `ApiError` 400 naming the first parameter that is wrong."""
    try:
        return ChatRequest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = f"{place}: this student does not support it ({first['msg']}): leave it out or correct it"
        raise ApiError(400, message, code="unsupported_value", param=place) from None


def completion(answer_id: str, created: int, model: str, generated: Generated) -> dict[str, Any]:
    message = {"role": "assistant", "content": generated.text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": generated.finish_reason}
    head = {"id": answer_id, "object": "chat.completion", "created": created, "model": model}
    return {**head, "choices": [choice], "usage": usage(generated)}


def chunk(
    answer_id: str, created: int, model: str, delta: dict[str, Any] | None, finish_reason: str | None = None
) -> dict[str, Any]:
    """One event of a stream; without a delta it is the last, which carries only the usage."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
    head = {"id": answer_id, "object": "chat.completion.chunk", "created": created, "model": model}
    return {**head, "choices": choices}


def usage(generated: Generated) -> dict[str, int]:
    prompt, answer = generated.input_tokens, generated.output_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


DONE = b"data: [DONE]\n\n"


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, f"{error.detail}: see /v1/models", code="not_found").response()


async def _on_failure(_: Request, error: Exception) -> Response:
    """The body of a 500; the server logs the traceback."""
    message = f"{type(error).__name__} in the server: its log says more"
    return ApiError(500, message, code="internal_error").response()


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=499)


EXCEPTION_HANDLERS = {
    ClientDisconnect: _on_disconnect,
    ApiError: _on_api_error,
    HTTPException: _on_http_error,
    Exception: _on_failure,
}


def _plain(message: Message, place: int) -> Message:
    role = message.get("role")
    if role not in ROLES:
        raise ApiError(400, f"messages.{place}.role: {role!r} is none of {', '.join(ROLES)}", code="invalid_value")
    try:
        return as_text(message)
    except ValueError as error:
        raise ApiError(400, f"messages.{place}.content: {error}", code="invalid_value") from None
