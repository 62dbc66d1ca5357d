"""What the drills of operations share: the whole line on a server, a teacher, and a log of tickets."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import httpx
import pytest

from potstill.inbox import Inbox
from potstill.promotions import read_aliases
from tests.line_on_server import Line, running_line

PROMPTS = 520


class Scene(NamedTuple):
    line: Line
    teacher: str
    recipe: Callable[..., dict[str, Any]]
    log: list[bytes]

    def requests(self) -> int:
        return httpx.get(f"{self.teacher}/replay/stats").json()["requests"]

    def land(self, name: str, start: int, stop: int) -> None:
        with Inbox(self.line.home, name) as inbox:
            assert inbox.land(f"msg-{start}-{stop}", "0" * 64, self.log[start:stop]).num_prompts == stop - start

    def champion(self, name: str) -> str | None:
        return read_aliases(self.line.home / "releases" / name).champion


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory,
    write_tickets: Callable[..., Any],
    replay_teacher: Callable[..., AbstractContextManager[str]],
    tiny_recipe: Callable[..., dict[str, Any]],
    tiny_base: Any,
) -> Callable[..., AbstractContextManager[Scene]]:
    """`stage(**settings)` starts all of it, with more settings for the server and its workers."""

    @contextmanager
    def start(**settings: str) -> Iterator[Scene]:
        place = tmp_path_factory.mktemp("line")
        tickets = write_tickets(place / "log", PROMPTS)
        log = tickets.log.read_bytes().splitlines(keepends=True)
        (place / "400.jsonl").write_bytes(b"".join(log[:400]))
        roots = f"{place}:{tiny_base}"
        with (
            replay_teacher(tickets.answers) as teacher,
            running_line(place, POTSTILL_DATA_ROOTS=roots, **settings) as line,
        ):

            def recipe(name: str, **sections: dict[str, Any]) -> dict[str, Any]:
                given = tiny_recipe(place / "400.jsonl", teacher)
                for section, values in sections.items():
                    given[section] = given.get(section, {}) | values
                return given | {"name": name}

            yield Scene(line, teacher, recipe, log)

    return start
