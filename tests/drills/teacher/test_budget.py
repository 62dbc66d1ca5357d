"""The cap in a thousand seeded schedules, and under real processes that are killed: it is never overshot."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from potstill.ledger import Ledger
from tests.cli.test_teach import GIVEN_PRICE, ROOT, write_prompts
from tests.fake_teacher import MALFORMED, PRICE, RATE_LIMITED, RESET, SERVER_ERROR, Asked, FakeTeacher, Fault
from tests.postgres import PostgresServer, find_server, is_required, running_server
from tests.teacher.simulation.schedule import Figures, Schedule

pytestmark = pytest.mark.drill

SCHEDULES = 1000
ON_POSTGRESQL = 100
"""Further schedules, where the server is installed."""
WAITS = {
    "Asker._ask_each",
    "Asker._send",
    "Asker._work",
    "GroupedLedger._write_groups",
    "GroupedLedger.begin",
    "GroupedLedger.run",
    "Limiter.acquire",
    "Sender._has_settled",
    "Sender.send",
    "Stop.sleep",
    "Missing.draw",
}
"""Where a process that teaches can wait; it was killed in each."""
RUNS = 50
PROMPTS = 40
MAX_TOKENS = 64
RUN_SECONDS = 120


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer | None]:
    binaries = find_server()
    with ExitStack() as stack:
        assert binaries or not is_required("postgresql")
        yield stack.enter_context(running_server(binaries)) if binaries else None


def test_a_thousand_schedules(tmp_path: Path, postgres: PostgresServer | None) -> None:
    began = time.monotonic()
    figures: list[Figures] = []
    for seed in range(SCHEDULES):
        path = tmp_path / f"{seed}.db"
        figures.append(Schedule(seed, f"sqlite:///{path}").run())
        path.unlink()
    print(*describe("SQLite", figures, time.monotonic() - began), sep="\n")
    assert not WAITS - set(total(figures, "waits"))
    if postgres is not None:
        began = time.monotonic()
        others = [Schedule(SCHEDULES + n, postgres.new_database()).run() for n in range(ON_POSTGRESQL)]
        print(*describe("PostgreSQL", others, time.monotonic() - began), sep="\n")


def total(figures: list[Figures], name: str) -> Counter[str]:
    return sum((getattr(found, name) for found in figures), Counter[str]())


def describe(name: str, figures: list[Figures], seconds: float) -> Iterator[str]:
    deaths, requests = total(figures, "deaths"), sum(found.requests for found in figures)
    checks = sum(found.checks for found in figures)
    yield f"\n{name}: {len(figures)} schedules in {seconds:.0f} s; {requests} requests; {checks} checks"
    for title in ("deaths", "waits", "faults", "endings"):
        yield f"  {title}: " + ", ".join(f"{count} × {kind}" for kind, count in total(figures, title).most_common())
    tightest = min(figures, key=lambda found: found.tightest_share)
    full = sum(found.tightest_share < Decimal("0.1") for found in figures)
    yield f"  killed {deaths.total() - deaths['interrupted']} times; less than a tenth of the cap was left in {full}"
    yield f"  tightest: {tightest.tightest_usd} USD, {tightest.tightest_share:.4%} of the cap"


class Biller:
    """Answers, and fails, at random; knows what it has truly billed, in USD."""

    def __init__(self, seed: int, cap: Decimal) -> None:
        self._random = random.Random(seed)
        self._cap = cap
        self._lock = threading.Lock()
        self.billed = Decimal(0)
        self.is_overshot = False
        self.told: Counter[int] = Counter()
        """What each readable reply said that it cost, in pico-dollars."""

    def __call__(self, asked: Asked) -> Fault:
        with self._lock:
            return self._serve(asked)

    def _serve(self, asked: Asked) -> Fault:
        draw = self._random.random()
        if draw < 0.1:
            return RATE_LIMITED if draw < 0.05 else SERVER_ERROR
        most = (int(asked.headers["content-length"]), asked.body["max_tokens"])
        usage = most if self._random.random() < 0.5 else tuple(self._random.randint(0, limit) for limit in most)
        cost = (usage[0] * PRICE.input_per_million + usage[1] * PRICE.output_per_million) / 1_000_000
        self.billed += cost
        self.is_overshot = self.is_overshot or self.billed > self._cap
        if draw < 0.2:
            return RESET if draw < 0.15 else MALFORMED
        self.told[int(cost.scaleb(12))] += 1
        choice = {"message": {"role": "assistant", "content": f"answer to {asked.mark}"}, "finish_reason": "stop"}
        counted = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
        body = json.dumps({"choices": [choice], "usage": counted}).encode()
        return Fault("answered", 200, body, usage=(usage[0], usage[1]))


class Teaching:
    """Two processes on one ledger, and what is known of it."""

    def __init__(self, root: Path, teacher: FakeTeacher, cap: Decimal) -> None:
        self._root = root
        self._teacher = teacher
        self._cap = cap
        self._url = f"sqlite:///{root / 'ledger.db'}"
        self._prompts = write_prompts(root / "prompts.jsonl", PROMPTS)
        self.kept: list[tuple[int, set[str]]] = []
        """At each kill: how many requests had come, and the marks of the answers that were already in the ledger."""

    def start(self, name: str) -> "subprocess.Popen[bytes]":
        endpoint = ["--provider", "openai_compatible", "--base-url", self._teacher.url, "--model", "fake-1"]
        limits = ["--price", GIVEN_PRICE, "--budget-usd", f"{self._cap:f}", "--max-tokens", MAX_TOKENS]
        rest = ["--concurrency", 8, "--ledger", self._url, "--out", self._root / name, "--json"]
        command = [sys.executable, "-m", "potstill.cli", "teach", self._prompts, *endpoint, *limits, *rest]
        environment = {**os.environ, "POTSTILL_HOME": str(self._root / "home")}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([str(word) for word in command], cwd=ROOT, env=environment, **quiet)

    def note_what_is_kept(self) -> None:
        requests = len(self._teacher.requests)
        is_there = (self._root / "ledger.db").exists()
        self.kept.append((requests, self._marks_answered() if is_there else set()))

    def check(self, biller: Biller) -> int:
        """What must be true when both have ended; returns how many answers there are."""
        ledger = Ledger(self._url)
        ledger.close_orphans()
        ledger.close()
        [(account, spent, reserved)] = self._read("SELECT name, spent_usd, reserved_usd FROM accounts")
        assert not biller.is_overshot
        assert reserved == 0
        assert biller.billed <= Decimal(spent).scaleb(-12) <= self._cap, account
        known = self._read("SELECT cost_usd FROM attempts WHERE status IN ('answered', 'unusable')")
        assert Counter(row[0] for row in known) <= biller.told, "a known cost is what a reply said"
        answers = self._marks_answered()
        for requests, marks in self.kept:
            assert marks <= answers, "an answer is lost"
            assert not marks & set(self._teacher.marks()[requests:]), "an answer was asked for again"
        return len(answers)

    def _marks_answered(self) -> set[str]:
        rows = self._read("SELECT message FROM answers")
        return {json.loads(row[0])["content"].removeprefix("answer to ") for row in rows}

    def _read(self, query: str) -> list[tuple]:
        engine = create_engine(self._url)
        with engine.connect() as connection:
            found = [tuple(row) for row in connection.execute(text(query))]
        engine.dispose()
        return found


def test_fifty_runs_of_two_processes_that_are_killed(tmp_path: Path) -> None:
    began, kills, requests, starts, endings = time.monotonic(), 0, 0, 0, Counter[str]()
    tightest = Decimal(1)
    for seed in range(RUNS):
        draw = random.Random(seed)
        root = tmp_path / str(seed)
        root.mkdir()
        bound = Decimal("0.0011")
        cap = (bound * PROMPTS * Decimal(draw.choice([0.1, 0.4, 0.8, 3.0]))).quantize(Decimal("1e-9"))
        biller = Biller(seed, cap)
        with FakeTeacher(biller, latency=draw.choice([0.005, 0.03])) as teacher:
            teaching = Teaching(root, teacher, cap)
            codes, killed, started = drive(teaching, teacher, draw)
            answers = teaching.check(biller)
            requests += len(teacher.requests)
        assert (answers == PROMPTS) or 5 in codes
        assert set(codes) <= {0, 5}
        endings.update({"all answered" if answers == PROMPTS else "budget reached": 1})
        kills, starts = kills + killed, starts + started
        tightest = min(tightest, (cap - biller.billed) / cap)
    print(f"\n{RUNS} runs of two processes in {time.monotonic() - began:.0f} s: {starts} starts, {kills} killed,")
    print(f"  {requests} requests; {dict(endings)}; the true bill came within {tightest:.2%} of the cap")
    assert kills > RUNS
    assert len(endings) == 2


def drive(teaching: Teaching, teacher: FakeTeacher, draw: random.Random) -> tuple[list[int], int, int]:
    """Start two, kill either at random moments, start it again; returns their exit codes, the kills and the starts."""
    names = ("one", "two")
    processes = {name: teaching.start(name) for name in names}
    kills_left, killed, started = draw.randint(1, 4), 0, 2
    codes: dict[str, int] = {}
    deadline = time.monotonic() + RUN_SECONDS
    target = draw.randint(0, 15)
    while len(codes) < len(names):
        assert time.monotonic() < deadline, "it never ends"
        running = [name for name in names if name not in codes]
        if killed < kills_left and len(teacher.requests) >= target:
            time.sleep(draw.uniform(0, 0.05))
            name = draw.choice(running)
            teaching.note_what_is_kept()
            processes[name].kill()
            if processes[name].wait() == -signal.SIGKILL:
                killed, started = killed + 1, started + 1
                processes[name] = teaching.start(name)
            target = len(teacher.requests) + draw.randint(0, 15)
        for name in running:
            code = processes[name].poll()
            if code in {0, 5}:
                codes[name] = code
            elif code is not None:
                started += 1
                processes[name] = teaching.start(name)
        time.sleep(0.005)
    return list(codes.values()), killed, started
