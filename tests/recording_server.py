"""A server that answers as it is told, path by path, and remembers what it was asked."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from tests.scripted_server import ScriptedHandler, ScriptedServer


class Answer(NamedTuple):
    status: int = 200
    body: Any = None
    """JSON."""
    headers: Mapping[str, str] = MappingProxyType({})
    delay: float = 0
    """Seconds before it."""


NOT_THERE = Answer(404)


class Seen(NamedTuple):
    method: str
    target: str
    """Path and query."""
    headers: dict[str, str]
    body: bytes


class RecordingServer(ScriptedServer):
    """Answers by path, below `origin`; anything else with `default`."""

    def __init__(self, default: Answer = NOT_THERE, **paths: Answer) -> None:
        super().__init__()
        self.default = default
        self.answers: dict[str, Answer] = dict(paths)
        self.seen: list[Seen] = []

    @property
    def targets(self) -> list[str]:
        return [seen.target for seen in self.seen]


class _Handler(ScriptedHandler[RecordingServer]):
    def serve(self) -> None:
        server = self.teacher
        server.seen.append(Seen(self.command, self.path, self.read_headers(), self.read_body()))
        answer = server.answers.get(self.path.partition("?")[0], server.default)
        if answer.delay:
            server.hang(answer.delay)
        self.send(answer.status, json.dumps(answer.body).encode(), tuple(answer.headers.items()))


RecordingServer.handler = _Handler
