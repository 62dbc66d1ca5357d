"""`potstill run`, interrupted and killed: it stops at once, leaves nothing running, and the same command goes on."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.training.spec import read_points
from tests.line import Line

pytestmark = pytest.mark.flow

PROMPTS = 300
STAGE_SECONDS = 360


@pytest.fixture
def line(
    tmp_path: Path,
    write_tickets: Callable[..., Any],
    replay_teacher: Callable[..., Any],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> Iterator[Line]:
    tickets = write_tickets(tmp_path / "input", PROMPTS)
    with replay_teacher(tickets.answers, latency_ms=200) as teacher:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(tickets.log, teacher)))
        line = Line(tmp_path, teacher, tmp_path / "prefect")
        yield line
        for process in line.processes():
            process.kill()


def test_an_interrupt_stops_the_spending_and_a_kill_the_training_and_the_same_command_goes_on(line: Line) -> None:
    first = line.start()
    wait_until(lambda: line.requests() >= 60)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does: to all that runs in it
    interrupted = time.monotonic()
    assert first.wait(30) == 130
    said = (line.root / "log").read_text()
    assert "interrupted: run the same again to go on" in said
    assert "Traceback" not in said
    assert "Finished in state Crashed" in said
    asked = line.requests()
    assert asked < PROMPTS
    states = [states[-1] for states in line.attempts().values()]
    assert set(states) <= {"answered", "unknown"}
    line.wait_for_the_end()
    assert time.monotonic() - interrupted < 20

    second = line.start()
    wait_until(lambda: any(read_points(path) for path in line.home.glob("runs/train/*/progress.jsonl")))
    second.kill()
    second.wait()
    line.wait_for_the_end()

    assert line.finish()["verdict"] == "passed"
    assert line.requests() == PROMPTS + states.count("unknown")
    line.wait_for_the_end()


def test_a_supervisor_that_stops_the_whole_group_stops_the_spending_though_the_server_is_gone_too(line: Line) -> None:
    run = line.start()
    wait_until(lambda: line.requests() >= 60)
    os.killpg(run.pid, signal.SIGTERM)
    assert run.wait(40) == 130
    assert line.requests() < PROMPTS
    said = (line.root / "log").read_text()
    assert "Prefect's temporary server ended before the run. interrupted: run the same again to go on" in said
    line.wait_for_the_end()


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + STAGE_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)
