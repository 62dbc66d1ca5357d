"""The teacher stage as its users start it, `potstill teach`, beside the tools that they would use instead.

Each sample is a fresh process against a fresh fake teacher; the teacher's log says when requests came, and what was
answered twice. Rates are taken from that log, CPU and memory from the kernel, so that one ruler measures all.
"""

import heapq
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import orjson

from bench.fast_teacher.dialects import is_answer_to
from bench.fast_teacher.faults import draw
from bench.fast_teacher.log import LoggedRequests
from bench.fast_teacher.running import RunningTeacher, running
from bench.fast_teacher.settings import Settings
from bench.measuring import CHILD_ENVIRONMENT, ROOT, Bar, Benchmark, Sample, Taken
from bench.peers.environments import CURATOR, PEERS, EnvironmentFailedError, environment
from bench.prompts import write_prompts
from potstill.errors import SubprocessError

POTSTILL = "potstill"
FLOW = "potstill in a flow"


class Workload(NamedTuple):
    """What a sample asks for."""

    prompts: int
    concurrency: int
    latency_ms: float = 0.0
    latency_sigma: float = 0.0

    @property
    def teacher(self) -> Settings:
        return Settings(latency_ms=self.latency_ms, latency_sigma=self.latency_sigma)


class Command(NamedTuple):
    """What is run, and where its answers then stand."""

    arguments: list[str]
    variables: Mapping[str, str]
    answers: Path


def potstill_command(url: str, prompts: Path, directory: Path, concurrency: int) -> Command:
    """The command line as documented, its ledger on, in a home of its own."""
    out = directory / "out"
    arguments = [sys.executable, "-m", "potstill.cli", "teach", str(prompts), "--out", str(out), "--base-url", url]
    arguments += ["--provider", "openai_compatible", "--model", "gpt-4o-mini", "--price", "1,10", "--max-tokens", "256"]
    arguments += ["--temperature", "0", "--concurrency", str(concurrency), "--no-redact", "--json"]
    return Command(
        arguments, {"POTSTILL_HOME": str(directory / "home"), **CHILD_ENVIRONMENT}, out / "completions.jsonl"
    )


def peer_command(name: str, url: str, prompts: Path, directory: Path, concurrency: int) -> Command:
    """A peer's script in the peer's environment, with no memory of earlier runs and nothing to call home with."""
    python, variables = environment(PEERS[name])
    out = directory / "out.jsonl"
    arguments = [str(python), "-m", PEERS[name].module, url, str(prompts), str(out), str(concurrency)]
    own = {"HOME": str(directory), "CURATOR_CACHE_DIR": str(directory / "cache"), "OPENAI_API_KEY": "none"}
    quiet = {"TELEMETRY_ENABLED": "false", "HF_HUB_OFFLINE": "1", "CURATOR_DISABLE_RICH_DISPLAY": "1"}
    return Command(arguments, {**own, **quiet, **variables}, out)


def flow_command(url: str, prompts: Path, directory: Path, concurrency: int) -> Command:
    """The tasks of the parent flow's teacher stage, with an embedded Prefect server of its own."""
    out = directory / "out"
    arguments = [sys.executable, "-m", "bench.teach_in_flow", url, str(prompts), str(out), str(concurrency)]
    own = {"POTSTILL_HOME": str(directory / "home"), "PREFECT_HOME": str(directory / "prefect")}
    variables = {**own, **CHILD_ENVIRONMENT, "PREFECT_LOGGING_LEVEL": "ERROR"}
    return Command(arguments, variables, out / "completions.jsonl")


def command(contender: str, url: str, prompts: Path, directory: Path, concurrency: int) -> Command:
    own = {POTSTILL: potstill_command, FLOW: flow_command}
    return own.get(contender, partial(peer_command, contender))(url, prompts, directory, concurrency)


def ideal_seconds(workload: Workload, marks: Sequence[str]) -> float:
    """What the latencies alone take, with so many in flight and each place filled as soon as it is free."""
    places = [0.0] * min(workload.concurrency, len(marks))
    for mark in marks:
        heapq.heapreplace(places, places[0] + draw(workload.teacher, mark, 1).latency_seconds)
    return max(places)


def generation_seconds(workload: Workload, log: LoggedRequests) -> float:
    """From the first prompt's arrival at the teacher to the last reply."""
    asked = [row for row in log.requests if row.mark]
    ends = (row.at + draw(workload.teacher, row.mark, row.attempt).latency_seconds for row in asked)
    return max(ends) - asked[0].at


def measure(run: Command) -> dict[str, Any]:
    """What a command used, as `bench.measured` tells it. Errors: `SubprocessError` where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.measured", *run.arguments],
        cwd=ROOT,
        env={**os.environ, **run.variables},
        capture_output=True,
        check=True,
    )
    used = orjson.loads(done.stdout)
    if used["code"] != 0:
        said = done.stderr.decode(errors="replace")[-2000:]
        raise SubprocessError(f"{' '.join(run.arguments[:4])} … failed with code {used['code']}: {said}")
    return used


def count_wrong(answers: Path, num_prompts: int) -> int:
    """How many prompts have no right answer in the file, each beside its own id."""
    right: set[str] = set()
    with answers.open("rb") as file:
        for line in file:
            row = orjson.loads(line)
            if is_answer_to(row["completion"] or "", row["id"]):
                right.add(row["id"])
    return num_prompts - len(right)


def take_sample(run: Command, workload: Workload, teacher: RunningTeacher, prompts: Path) -> Taken:
    """One run of a contender against a teacher that has served nobody yet."""
    used = measure(run)
    log = teacher.log()
    first_at = next(row.at for row in log.requests if row.mark)
    seconds = generation_seconds(workload, log)
    values = {
        "requests_per_second": workload.prompts / seconds,
        "cpu_us_per_request": 1e6 * used["cpu_seconds"] / workload.prompts,
        "wall_seconds": used["wall_seconds"],
        "start_seconds": first_at - used["started_at"],
        "rss_mib": used["rss_mib"],
    }
    if workload.latency_ms:
        marks = [orjson.loads(line)["id"] for line in prompts.read_bytes().splitlines()]
        values["times_the_ideal"] = seconds / ideal_seconds(workload, marks)
    evidence = {
        "wrong": count_wrong(run.answers, workload.prompts),
        "billed_twice": log.billed_twice(),
        "peak_in_flight": teacher.stats()["peak_in_flight"],
        "teacher_cpu_seconds": round(teacher.cpu_seconds(), 2),
        "said": used["said"],
    }
    return Taken(values, evidence)


def check(samples: Sequence[Sample]) -> dict[str, Any]:
    """Errors: `ValueError` where a contender has not every answer, each beside its own prompt."""
    wrong = {sample.contender: sample.evidence["wrong"] for sample in samples if sample.evidence["wrong"]}
    if wrong:
        raise ValueError(f"prompts without a right answer, by contender: {wrong}")
    return {"wrong_answers": 0, "billed_twice": sum(sample.evidence["billed_twice"] for sample in samples)}


@contextmanager
def _open(workloads: Mapping[str, Workload]) -> Iterator[Callable[[str], Taken]]:
    with TemporaryDirectory() as shared:

        def take(contender: str) -> Taken:
            workload = workloads[contender]
            prompts = Path(shared) / f"{workload.prompts}.jsonl"
            if not prompts.exists():
                write_prompts(prompts, workload.prompts)
            settings = workload.teacher
            flags = {"latency_ms": settings.latency_ms, "latency_sigma": settings.latency_sigma}
            with TemporaryDirectory() as directory, running(**flags) as teacher:
                name = contender if contender in {*PEERS, FLOW} else POTSTILL
                run = command(name, teacher.url, prompts, Path(directory), workload.concurrency)
                return take_sample(run, workload, teacher, prompts)

        yield take


def _prepare(contender: str) -> str | None:
    try:
        if contender in PEERS:
            environment(PEERS[contender])
    except EnvironmentFailedError as error:
        return str(error)
    return None


def _beside_peers(name: str, about: str, workload: Workload, *bars: Bar) -> Benchmark:
    contenders = (POTSTILL, *PEERS)
    return Benchmark(
        name=name,
        about=about,
        setting={**workload._asdict(), "peers": {peer.name: peer.requirement for peer in PEERS.values()}},
        contenders=contenders,
        comparisons=tuple((POTSTILL, peer) for peer in PEERS),
        repeats=3,
        open=partial(_open, dict.fromkeys(contenders, workload)),
        prepare=_prepare,
        check=check,
        bars=bars,
    )


TWICE_CURATORS_RATE = Bar(
    "requests a second ÷ curator's", "requests_per_second", POTSTILL, CURATOR.name, 2, at_least=True
)
AT_ONCE = _beside_peers(
    "teacher_at_once",
    "at most 2/5 of the CPU a request of both peers, and at least twice curator's rate",
    Workload(prompts=10_000, concurrency=64),
    *(Bar(f"CPU a request ÷ that of {peer}", "cpu_us_per_request", POTSTILL, peer, 2 / 5) for peer in PEERS),
    TWICE_CURATORS_RATE,
)
IN_200_MS = _beside_peers(
    "teacher_in_200_ms",
    "at most twice the ideal time, and at least twice curator's rate",
    Workload(prompts=10_000, concurrency=512, latency_ms=200, latency_sigma=0.5),
    Bar("time ÷ the ideal", "times_the_ideal", POTSTILL, None, 2),
    TWICE_CURATORS_RATE,
)
_FEW, _MANY = "10,000 prompts", "100,000 prompts"
_SIZES = {_FEW: Workload(10_000, concurrency=64), _MANY: Workload(100_000, concurrency=64)}
SIZES = Benchmark(
    name="teacher_sizes",
    about="first request within 1 s, at most 200 MB at 100,000 prompts, cost linear in their number",
    setting={name: workload._asdict() for name, workload in _SIZES.items()},
    contenders=tuple(_SIZES),
    comparisons=((_MANY, _FEW),),
    repeats=3,
    open=partial(_open, _SIZES),
    check=check,
    bars=(
        *(Bar(f"seconds from start to first request, {size}", "start_seconds", size, None, 1) for size in _SIZES),
        Bar(f"MiB of memory, {_MANY} (200 MB)", "rss_mib", _MANY, None, 200e6 / 2**20),
        Bar(f"CPU a request, {_MANY} ÷ {_FEW}", "cpu_us_per_request", _MANY, _FEW, 1.25),
    ),
)

_WAITING = Workload(prompts=2000, concurrency=64, latency_ms=200, latency_sigma=0.5)
IN_A_FLOW = Benchmark(
    name="teacher_in_a_flow",
    about="under Prefect at most 10 % over the command line, from the first request to the last reply",
    setting=_WAITING._asdict(),
    contenders=(FLOW, POTSTILL),
    comparisons=((FLOW, POTSTILL),),
    repeats=3,
    open=partial(_open, dict.fromkeys((FLOW, POTSTILL), _WAITING)),
    check=check,
    bars=(Bar("time in a flow ÷ that of the command", "times_the_ideal", FLOW, POTSTILL, 1.10),),
)
