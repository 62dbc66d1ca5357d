"""The teacher stage end to end at 64 requests in flight, beside the loop that one writes by hand.

    python -m bench.teach_throughput CONTENDER URL    one sample

The hand-written loops keep no ledger and no budget, and ask again at once where a connection is lost.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import orjson
import psutil
from httpx_aiohttp import AiohttpTransport

from bench.measuring import Benchmark, Sample, Taken, take_in_child
from potstill.artifacts import ArtifactStore
from potstill.cli.inputs import read_rows
from potstill.fingerprint import fingerprint
from potstill.ledger import Ledger
from potstill.recipe import Teacher
from potstill.recipe_file import load_recipe
from potstill.records import Completion, read_parquet, write_jsonl
from potstill.teacher.collect import COMPLETIONS, collect
from potstill.teacher.plan import InputRow, make_plan
from potstill.teacher.session import TeacherSession

RECIPE = Path("recipes/demo.yaml")
ANSWERS = Path("examples/demo/answers.jsonl")
CONCURRENCY = 64
LATENCY_MS = 50
WARM_UP = 8
UNLIMITED = str(10**9)

Answers = dict[str, str]
"""By prompt id."""


def _teach(rows: Sequence[InputRow], teacher: Teacher, directory: Path) -> Answers:
    ledger = Ledger(f"sqlite:///{directory / 'ledger.db'}")
    store = ArtifactStore(directory)
    plan = make_plan(rows, teacher, None)
    with TeacherSession(plan, ledger, budget_usd=Decimal(10)) as session:
        session.answer(plan.answers)
    completions = store.path(collect(plan, ledger, store)) / COMPLETIONS
    return {row.prompt_id: row.completion for row in read_parquet(completions, Completion)}


def _ask_by_hand(rows: Sequence[InputRow], teacher: Teacher, directory: Path, **client_options: Any) -> Answers:
    async def ask_all() -> list[str]:
        slots = asyncio.Semaphore(CONCURRENCY)

        async def ask(row: InputRow) -> str:
            body = {"model": teacher.model, "messages": row.prompt.messages}
            body |= {"max_tokens": teacher.max_tokens, "temperature": teacher.temperature}
            async with slots:
                while True:
                    with suppress(httpx.TransportError):  # such as an idle connection that the server has just closed
                        response = await client.post(f"{teacher.base_url}/chat/completions", json=body)
                        return response.raise_for_status().json()["choices"][0]["message"]["content"]

        async with httpx.AsyncClient(timeout=120, **client_options) as client:
            return await asyncio.gather(*map(ask, rows))

    answers = {row.prompt.prompt_id: text for row, text in zip(rows, asyncio.run(ask_all()), strict=True)}
    write_jsonl(directory / "answers.jsonl", ({"id": name, "answer": text} for name, text in answers.items()))
    return answers


POOL = httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
CONTENDERS: dict[str, Callable[[Sequence[InputRow], Teacher, Path], Answers]] = {
    "potstill": _teach,
    "httpx": _ask_by_hand,
    "httpx, pool of 64": partial(_ask_by_hand, limits=POOL),
    "httpx-aiohttp": lambda *given: _ask_by_hand(*given, transport=AiohttpTransport(limits=POOL)),
}


def main() -> None:
    """One sample in this process: all answers, after a few that load what is imported late."""
    contender, url = sys.argv[1:]
    teacher = load_recipe(RECIPE).teacher.model_copy(update={"base_url": url, "concurrency": CONCURRENCY})
    rows = read_rows(ANSWERS, redact=False).rows
    with TemporaryDirectory() as warm_up, TemporaryDirectory() as directory:
        CONTENDERS[contender](rows[:WARM_UP], teacher, Path(warm_up))
        wall, cpu = time.perf_counter(), time.process_time()
        answers = CONTENDERS[contender](rows, teacher, Path(directory))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    values = {"answers_per_second": len(answers) / wall, "cpu_ms_per_answer": 1000 * cpu / len(answers)}
    evidence = {"answers": len(answers), "digest": fingerprint(answers)[:12]}
    print(orjson.dumps({"values": values, "evidence": evidence}).decode())


@contextmanager
def _open() -> Iterator[Callable[[str], Taken]]:
    """The replay teacher in a process of its own; how much of a core it takes shows whether it is the bottleneck."""
    limits = ("--rpm", UNLIMITED, "--tpm", UNLIMITED, "--latency-ms", str(LATENCY_MS))
    command = [sys.executable, "-m", "potstill.teacher.replay", str(ANSWERS), "--port", "0", *limits]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as replay:
        try:
            assert replay.stdout is not None
            url = orjson.loads(replay.stdout.readline())["url"]
            server = psutil.Process(replay.pid)

            def take(contender: str) -> Taken:
                before = sum(server.cpu_times()[:2])
                taken = take_in_child("bench.teach_throughput", contender, url)
                seconds = taken.evidence["answers"] / taken.values["answers_per_second"]
                busy = (sum(server.cpu_times()[:2]) - before) / seconds
                return taken._replace(evidence={**taken.evidence, "teacher_busy": round(busy, 2)})

            yield take
        finally:
            replay.terminate()


def _check(samples: Sequence[Sample]) -> dict[str, Any]:
    found = {(sample.evidence["answers"], sample.evidence["digest"]) for sample in samples}
    if len(found) != 1:
        raise ValueError(f"the contenders got different answers: {sorted(found)}")
    return {
        "answers": found.pop()[0],
        "teacher_busy_at_most": max(sample.evidence["teacher_busy"] for sample in samples),
    }


BENCHMARK = Benchmark(
    name="teach_throughput",
    about="what the ledger costs at 64 requests in flight, and what the transport saves",
    setting={"prompts": "examples/demo/answers.jsonl", "concurrency": CONCURRENCY, "latency_ms": LATENCY_MS},
    contenders=tuple(CONTENDERS),
    comparisons=(
        ("potstill", "httpx"),
        ("potstill", "httpx, pool of 64"),
        ("potstill", "httpx-aiohttp"),
        ("httpx", "httpx-aiohttp"),
        ("httpx, pool of 64", "httpx-aiohttp"),
    ),
    repeats=4,
    open=_open,
    check=_check,
)

if __name__ == "__main__":
    main()
