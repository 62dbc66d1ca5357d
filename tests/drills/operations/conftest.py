"""What the drills of operations share: the whole line on a server, a teacher, and a log of tickets."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import httpx
import psutil
import pytest

from potstill.inbox import Inbox
from potstill.promotions import read_aliases
from tests.line_on_server import Line, running_line

PROMPTS = 520
NIGHTLY, BY_HAND = "redistill/demo", "distill-student/demo"


def seconds_until(look: Callable[[], bool], seconds: float = 240) -> float:
    started = time.monotonic()
    while not look():
        assert time.monotonic() - started < seconds, "nothing happened"
        time.sleep(0.2)
    return time.monotonic() - started


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

    def start_training(self, recipe: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], psutil.Process]:
        """A run whose child trains just now, and the process that trains."""
        run = self.line.start(BY_HAND, recipe)
        self.line.wait_for_state(run, lambda _: bool(self.line.children(run)))
        [child, *_] = self.line.children(run)
        self.line.process_of(child)
        seen = self.points()
        seconds_until(lambda: self.points() > seen)
        return run, child, self.trainer_of(child)

    def trainer_of(self, run: dict[str, Any]) -> psutil.Process:
        """The process that trains for a run just now."""
        started = self.line.process_of(run).children(recursive=True)
        return [one for one in started if "potstill.training.run" in " ".join(one.cmdline())][-1]

    def await_checkpoint(self) -> None:
        """Until a training has saved one more that can be gone on from."""
        trainings = self.line.home / "runs" / "train"
        seen = set(trainings.glob("*/checkpoints/*/is-whole"))
        seconds_until(lambda: not seen.issuperset(trainings.glob("*/checkpoints/*/is-whole")))

    def points(self) -> int:
        """Lines of progress that all trainings have written."""
        found = (self.line.home / "runs" / "train").glob("*/progress.jsonl")
        return sum(len(path.read_bytes().splitlines()) for path in found)


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory,
    write_tickets: Callable[..., Any],
    replay_teacher: Callable[..., AbstractContextManager[str]],
    tiny_recipe: Callable[..., dict[str, Any]],
    tiny_base: Any,
) -> Callable[..., AbstractContextManager[Scene]]:
    """`stage(**settings)` starts all of it, with more settings for the server and its workers; a teacher may be slow."""

    @contextmanager
    def start(latency_ms: float = 1, workers: tuple[str, ...] = ("cpu", "gpu"), **settings: str) -> Iterator[Scene]:
        place = tmp_path_factory.mktemp("line")
        tickets = write_tickets(place / "log", PROMPTS)
        log = tickets.log.read_bytes().splitlines(keepends=True)
        (place / "400.jsonl").write_bytes(b"".join(log[:400]))
        roots = f"{place}:{tiny_base}"
        with (
            replay_teacher(tickets.answers, latency_ms) as teacher,
            running_line(place, workers=workers, POTSTILL_DATA_ROOTS=roots, **settings) as line,
        ):

            def recipe(name: str, **sections: dict[str, Any]) -> dict[str, Any]:
                given = tiny_recipe(place / "400.jsonl", teacher)
                for section, values in sections.items():
                    given[section] = given.get(section, {}) | values
                return given | {"name": name}

            yield Scene(line, teacher, recipe, log)

    return start
