"""The question before a large bill, at a real terminal; and that nobody is asked where nobody can answer."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import yaml

from potstill.report.page import format_usd
from tests.fake_teacher import FakeTeacher

pytestmark = pytest.mark.flow

ROOT = Path(__file__).parents[2]
PROMPTS, SMOKE = 24, 16
QUESTION, NO = "Go on? [y/N]", b"n\n"
SECONDS = 180
DEAR = {"input_per_million": 50_000, "output_per_million": 200_000}
"""At which an answer costs about 2 USD."""
STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What a terminal is told of colours and of its cursor."""
STUB = "import sys\nprint('the flow starts:', *sys.argv[1:])\n"


class Ended(NamedTuple):
    code: int
    shown: str
    """What stood on the terminal."""

    @property
    def questions(self) -> int:
        return self.shown.count(QUESTION)


class Place(NamedTuple):
    """A recipe whose bill is large, its state, and its teacher."""

    root: Path
    teacher: FakeTeacher
    env: dict[str, str]

    def run(self, *flags: str, typed: bytes = NO, **options: Any) -> Ended:
        """`potstill run` at a terminal; of the stub where the place has one, else the whole of it."""
        return at_a_terminal(["run", str(self.root / "recipe.yaml"), *flags], self.env, typed, **options)

    def with_stub(self) -> "Place":
        """In place of the flow, a program that says what it was called with: it is there within a second."""
        (self.root / "stub/flows").mkdir(parents=True, exist_ok=True)
        (self.root / "stub/flows/__main__.py").write_text(STUB)
        (self.root / "stub/flows/__init__.py").touch()
        return self._replace(env=self.env | {"PYTHONPATH": os.pathsep.join((str(self.root / "stub"), str(ROOT)))})


def at_a_terminal(
    command: list[str],
    env: dict[str, str],
    typed: bytes,
    *,
    interrupt: Callable[[str], bool] = lambda shown: False,
    **streams: Any,
) -> Ended:
    """Run a command whose streams are a terminal but those that are given; type once it asks, until it has ended.

    Ctrl-C comes when `interrupt` says so of what is shown, and it sleeps: a signal between a question and the reading of its
    answer is seen only once that is there, and no hand is so quick.
    """
    ours, its = pty.openpty()
    program = [sys.executable, "-m", "potstill.cli", *command]
    given = {"stdin": its, "stdout": its, "stderr": its} | streams
    process = subprocess.Popen(program, env=env, start_new_session=True, **given)
    os.close(its)
    shown, is_interrupted, deadline = b"", False, time.monotonic() + SECONDS
    try:
        while True:
            assert time.monotonic() < deadline, shown.decode(errors="replace")[-2000:]
            if select.select([ours], [], [], 0.02)[0]:
                try:
                    shown += os.read(ours, 65536)
                except OSError:  # what Linux says when the other side has closed the terminal
                    break
            if typed and QUESTION.encode() in shown:
                os.write(ours, typed)
                typed = b""
            sleeps = psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING
            if not is_interrupted and sleeps and interrupt(shown.decode(errors="replace")):
                is_interrupted = True
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all that runs in it
        return Ended(process.wait(SECONDS), STYLES.sub("", shown.decode(errors="replace")).replace("\r\n", "\n"))
    finally:
        os.close(ours)
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One for all tests that ask the teacher nothing: it is curated once."""
    with made_in(tmp_path_factory.mktemp("confirmation")) as place:
        yield place


@contextmanager
def made_in(root: Path) -> Iterator[Place]:
    (root / "base").mkdir()
    (root / "base/config.json").write_text("{}")
    with (root / "log.jsonl").open("w") as log:
        for number in range(PROMPTS):
            messages = [{"role": "user", "content": f"Which one is #{number:04d}?" + " again" * (number % 7)}]
            log.write(json.dumps({"timestamp": number, "workload_id": "w", "request": {"messages": messages}}) + "\n")
    foreign = ("PREFECT_", "POTSTILL_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "POTSTILL_HOME": str(root / "home"),
        "PREFECT_HOME": str(root / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PYTHONPATH": str(ROOT),
    }
    with FakeTeacher() as teacher:
        asked = {"provider": "openai_compatible", "base_url": teacher.url, "model": "fake-1", "price": DEAR}
        recipe = {
            "name": "tickets",
            "task": {"kind": "extraction"},
            "curation": {"inputs": [str(root / "log.jsonl")], "test_fraction": 0.3},
            "teacher": asked | {"max_tokens": 32, "concurrency": 2},
            "student": {"base": str(root / "base")},
        }
        (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        yield Place(root, teacher, env)


@pytest.mark.parametrize("typed", [NO, b"\x04", b"yesterday\n"], ids=["n", "Ctrl-D", "yesterday"])
def test_any_answer_but_yes_is_exit_2_and_costs_nothing(place: Place, typed: bytes) -> None:
    ended = place.run(typed=typed)
    assert (ended.code, ended.questions, place.teacher.requests) == (2, 1, [])
    asked, said = [line for line in ended.shown.splitlines() if QUESTION in line or "error" in line]
    assert "24 answers are missing and may cost up to $" in asked
    assert "(`potstill estimate` tells more for the price of 16 prompts)" in asked
    assert said == "error: not confirmed: nothing was asked"


def test_ctrl_c_at_the_question_is_exit_130_and_costs_nothing(place: Place) -> None:
    ended = place.run(typed=b"", interrupt=lambda shown: QUESTION in shown)
    assert (ended.code, ended.questions, place.teacher.requests) == (130, 1, [])
    assert ended.shown.splitlines()[-1] == "interrupted: run the same again to go on"


def test_teach_asks_the_same_and_on_standard_error(place: Place) -> None:
    rows = [{"messages": [{"role": "user", "content": f"Which one is #{number:04d}?"}]} for number in range(PROMPTS)]
    (place.root / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["teach", str(place.root / "chat.jsonl"), "--out", str(place.root / "out"), "--model", "fake-1", "--json"]
    given += ["--provider", "openai_compatible", "--base-url", place.teacher.url, "--price", "50000,200000"]
    with (place.root / "summary").open("wb") as summary:
        ended = at_a_terminal([*given, "--max-tokens", "32"], place.env, b"\x04", stdout=summary)
    assert (ended.code, ended.questions, place.teacher.requests) == (2, 1, [])
    assert (place.root / "summary").read_bytes() == b"", "which is for programs"
    assert "error: not confirmed" in ended.shown
    assert "potstill estimate" not in ended.shown, "it needs a recipe"


def close_stdin() -> None:
    os.close(0)


@pytest.mark.parametrize(
    ("flags", "streams"),
    [
        (["--yes"], {}),
        (["--set", "budget.run_usd=9"], {}),
        (["--set", "teacher.max_tokens=1", "--set", "teacher.price.input_per_million=1"], {}),
        ([], {"stdin": subprocess.DEVNULL}),
        ([], {"stderr": subprocess.DEVNULL}),
        ([], {"stdin": None, "preexec_fn": close_stdin}),
    ],
    ids=["--yes", "a small budget", "a small bill", "no terminal to read", "no terminal to write", "no input at all"],
)
def test_nothing_is_asked_and_the_flow_starts(place: Place, flags: list[str], streams: dict[str, Any]) -> None:
    ended = place.with_stub().run(*flags, **streams)
    passed = [flag for flag in flags if flag != "--yes"]
    assert (ended.code, ended.questions) == (0, 0)
    assert ended.shown.splitlines()[-1] == " ".join(["the flow starts:", str(place.root / "recipe.yaml"), *passed])


def test_what_cron_starts_never_asks(place: Place) -> None:
    given = [sys.executable, "-m", "potstill.cli", "run", str(place.root / "recipe.yaml"), "--json"]
    ended = subprocess.run(
        given,
        env=place.with_stub().env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=SECONDS,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [f"the flow starts: {place.root / 'recipe.yaml'} --json"]


def test_yes_goes_on_with_what_the_estimate_left_and_the_flow_at_its_terminal_asks_no_more(tmp_path: Path) -> None:
    with made_in(tmp_path) as place:
        given = [sys.executable, "-m", "potstill.cli", "estimate", str(tmp_path / "recipe.yaml"), "--json"]
        estimated = subprocess.run(given, env=place.env, capture_output=True, check=True, timeout=SECONDS)
        smoke = place.teacher.marks()
        place.teacher.latency = 0.3  # so that it is interrupted before all are answered
        ended = place.run(typed=b"y\n", interrupt=lambda shown: len(place.teacher.requests) > SMOKE)
        later = place.teacher.marks()[SMOKE:]
    assert (ended.code, ended.questions, len(smoke)) == (130, 1, SMOKE)
    assert later
    assert not set(later) & set(smoke), "they are paid for"
    (asked,) = [line for line in ended.shown.splitlines() if QUESTION in line]
    assert asked.startswith("8 answers are missing and may cost up to $")
    cost = json.loads(estimated.stdout)["teacher"]["online"]
    low, expected, high = (format_usd(Decimal(str(cost[name]))) for name in ("low_usd", "expected_usd", "high_usd"))
    assert low != high
    assert f"; expected are {expected}, 95 % interval {low} – {high}. Go on?" in asked
