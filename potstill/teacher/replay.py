"""The demo's teacher: a local OpenAI-compatible server that replays recorded answers.

    python -m potstill.teacher.replay ANSWERS --port N

ANSWERS holds `{"messages", "completion"}` lines: the demo's answers, or the `completions.jsonl` of `potstill teach`.
Latency is lognormal (sigma 0.5) around its median and depends on the prompt and the seed only. Tokens are UTF-8 bytes / 4,
rounded up. Requests and tokens a minute are real token buckets that hold one minute's worth; the headers mirror them.
"""

import argparse
import asyncio
import hashlib
import math
import random
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from potstill.errors import DataError

KEY_LETTERS = 200
Headers = dict[str, str] | None


def prompt_letters(content: Any) -> str:
    """The first 200 letters of a message, lower case, leaving out every word with a digit or an @.

    Personal data and what redaction puts in its place are mostly such words: both then give the same letters.
    """
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content)
    return re.sub(r"\S*[\d@]\S*|[^a-z]", "", str(content or "").lower())[:KEY_LETTERS]


def answer_key(messages: Sequence[dict[str, Any]]) -> str:
    """What a recorded answer is found by: the letters of every message."""
    return "|".join(prompt_letters(message.get("content")) for message in messages)


def load_answers(path: Path) -> dict[str, str]:
    """The answers by `answer_key`; quarantined ones are left out.

    Errors: `DataError` where the file cannot be read, or holds two answers to what looks like one prompt.
    """
    answers: dict[str, str] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: name a file of recorded answers") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = orjson.loads(line)
            key, completion, quarantine = answer_key(row["messages"]), str(row["completion"]), row.get("quarantine")
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            raise DataError(f"{path}:{number}: no JSON object with messages and completion: remove the line") from None
        if quarantine is None and answers.setdefault(key, completion) != completion:
            raise DataError(f"{path}:{number}: a second answer to the same {KEY_LETTERS} letters: keep one of them")
    if not answers:
        raise DataError(f"{path}: holds no answer that can be replayed: record some first")
    return answers


def count_tokens(text: str) -> int:
    return math.ceil(len(text.encode()) / 4)


class Bucket:
    """A token bucket that holds `per_minute` and refills evenly."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self.level = float(per_minute)
        self._updated = time.monotonic()

    def wait_seconds(self, amount: float) -> float:
        """How long until `amount` (at most all that it holds) is there; 0 when it is there now."""
        now = time.monotonic()
        self.level = min(self.per_minute, self.level + (now - self._updated) * self.per_minute / 60)
        self._updated = now
        return max(0.0, (min(amount, self.per_minute) - self.level) * 60 / self.per_minute)

    def headers(self, unit: str) -> dict[str, str]:
        reset_seconds = self.wait_seconds(self.per_minute)
        values = {"limit": self.per_minute, "remaining": max(0, int(self.level)), "reset": f"{reset_seconds:.3f}s"}
        return {f"x-ratelimit-{name}-{unit}": str(value) for name, value in values.items()}


@dataclass
class Replay:
    """The endpoints over one set of answers."""

    answers: dict[str, str]
    latency_ms: float = 30
    rpm: int = 6000
    tpm: int = 2_000_000
    seed: int = 0
    log: Path | None = None

    def __post_init__(self) -> None:
        self.buckets = {"requests": Bucket(self.rpm), "tokens": Bucket(self.tpm)}
        self.counts = {"requests": 0, "answered": 0}

    async def chat(self, request: Request) -> JSONResponse:
        self.counts["requests"] += 1
        try:
            body = orjson.loads(await request.body())
            model, key = str(body["model"]), answer_key(body["messages"])
            limit = int(body.get("max_completion_tokens") or body.get("max_tokens") or 4096)
            prompt_tokens = sum(count_tokens(str(message["content"])) for message in body["messages"])
        except (orjson.JSONDecodeError, LookupError, TypeError, ValueError, AttributeError):
            return self._refuse(400, "", "invalid_body", "The body needs a model and messages with content.")
        digest = hashlib.sha256(f"{self.seed}/{key}".encode()).hexdigest()
        asked = {"requests": 1, "tokens": prompt_tokens + limit}
        wait, unit = max((bucket.wait_seconds(asked[name]), name) for name, bucket in self.buckets.items())
        if wait > 0:
            message = f"Rate limit reached for {model} on {unit} per min: limit {self.buckets[unit].per_minute}."
            return self._refuse(429, digest, "rate_limit_exceeded", message, {"retry-after": f"{math.ceil(wait)}"})
        for name, bucket in self.buckets.items():
            bucket.level -= asked[name]
        rng = random.Random(digest)  # noqa: S311  # the latency of a demo, no secret depends on it
        await asyncio.sleep(self.latency_ms / 1000 * rng.lognormvariate(0, 0.5))
        if key not in self.answers:
            return self._refuse(400, digest, "no_recorded_answer", "No answer to this prompt was recorded.")
        self.counts["answered"] += 1
        text = self.answers[key].encode()[: 4 * limit].decode(errors="ignore")
        finish_reason = "stop" if text == self.answers[key] else "length"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": count_tokens(text)}
        usage["total_tokens"] = sum(usage.values())
        answer = {"object": "chat.completion", "created": int(time.time()), "model": model, "usage": usage}
        answer |= {"id": f"chatcmpl-replay-{digest[:24]}", "choices": [choice], "system_fingerprint": "fp_replay"}
        return self._reply(200, digest, answer)

    def _refuse(self, status: int, digest: str, code: str, message: str, headers: Headers = None) -> JSONResponse:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        return self._reply(status, digest, {"error": error}, headers)

    def _reply(self, status: int, digest: str, body: dict[str, Any], headers: Headers = None) -> JSONResponse:
        if self.log is not None:
            row = {"time": time.time(), "prompt": digest[:16], "status": status, "usage": body.get("usage")}
            with self.log.open("ab") as file:
                file.write(orjson.dumps(row) + b"\n")
        limits = [bucket.headers(unit) for unit, bucket in self.buckets.items()]
        return JSONResponse(body, status, {**limits[0], **limits[1], **(headers or {})})


def serve(replay: Replay, listener: socket.socket) -> None:
    """Answer on a socket that listens already, until SIGTERM or SIGINT; they end the process with exit code 0."""
    host, port = listener.getsockname()[:2]
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again after its own shutdown
        signal.signal(number, lambda *_: sys.exit(0))
    models = {"object": "list", "data": [{"id": "replay", "object": "model", "owned_by": "potstill"}]}
    routes = [
        Route("/v1/chat/completions", replay.chat, methods=["POST"]),
        Route("/v1/models", lambda _: JSONResponse(models)),
        Route("/v1/replay/stats", lambda _: JSONResponse(replay.counts)),
    ]
    ready = {"url": f"http://{host}:{port}/v1", "answers": len(replay.answers)}
    print(orjson.dumps(ready).decode(), flush=True)  # noqa: T201  # the one line that callers wait for
    app = Starlette(routes=routes)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser(prog="potstill.teacher.replay", description="Replay recorded teacher answers.")
    parser.add_argument("answers", type=Path)
    parser.add_argument("--port", type=int, required=True, help="0 = any free port")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--latency-ms", type=float, default=30, help="median latency")
    parser.add_argument("--rpm", type=int, default=6000, help="requests a minute")
    parser.add_argument("--tpm", type=int, default=2_000_000, help="tokens a minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="append one JSON line per chat request")
    given = vars(parser.parse_args())
    path, host, port = given.pop("answers"), given.pop("host"), given.pop("port")
    try:
        answers = load_answers(path)
        listener = socket.create_server((host, port), backlog=1024)
    except DataError as error:
        parser.exit(error.exit_code, f"{error}\n")
    except (OSError, OverflowError) as error:
        parser.exit(1, f"cannot listen on {host}:{port}: {error}: choose another --port (0 = any)\n")
    serve(Replay(answers, **given), listener)


if __name__ == "__main__":
    main()
