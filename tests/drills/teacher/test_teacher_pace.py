"""Limits that a teacher enforces: they are used up and hardly ever met, whether its headers tell of them or not."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench.fast_teacher.running import RunningTeacher, running
from tests.teaching import Started, Teaching, read_written

pytestmark = pytest.mark.drill

RPM, TPM = 3000, 300_000
LIMITS: dict[str, dict[str, int]] = {"requests": {"rpm": RPM}, "tokens": {"tpm": TPM}, "both": {"rpm": RPM, "tpm": TPM}}
PROMPT_WORDS = (
    " Does the parcel come today, or is it late once more? Say which, in a sentence or two of plain words, please. "
)
ANSWER_TOKENS = 62
"""With its prompt about 100 tokens, so that both limits are met at the same pace."""
BURST_SECONDS = 5
SECONDS = 65
WAYS = ("openai_compatible, told", "openai_compatible, untold", "anthropic, told")
PROMPTS = RPM * (BURST_SECONDS + SECONDS) // 60


class Paced(NamedTuple):
    used: dict[str, float]
    """The share of each limit, as the teacher counts it."""
    requests: int
    refused: int
    seconds: float
    right: int

    @property
    def refused_share(self) -> float:
        return self.refused / self.requests


@pytest.fixture(scope="module")
def paced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Paced]]:
    """Each limit, told and untold; the three of one way at the same time: none of them needs a tenth of a core."""
    root = tmp_path_factory.mktemp("pace")
    prompts = root / "prompts.jsonl"
    write_short_prompts(prompts)
    found: dict[tuple[str, str], Paced] = {}
    for way in WAYS:
        found |= run_side_by_side(way, prompts, root)
    yield found
    print("\n| limit | headers | used | refused | of | seconds |\n|---|---|--:|--:|--:|--:|")
    for (name, way), run in found.items():
        used = ", ".join(f"{share:.3f} of the {limit}" for limit, share in run.used.items())
        print(f"| {name} | {way} | {used} | {run.refused} | {run.requests} | {run.seconds:.0f} |")


def run_side_by_side(way: str, prompts: Path, root: Path) -> dict[tuple[str, str], Paced]:
    provider, told = way.split(", ")
    with ExitStack() as stack:
        runs: dict[tuple[str, str], tuple[RunningTeacher, Teaching, Started]] = {}
        for name, limits in LIMITS.items():
            flags = {**limits, "latency_ms": 200, "burst_seconds": BURST_SECONDS, "answer_tokens": ANSWER_TOKENS}
            teacher = stack.enter_context(running(**flags, headers=told == "told"))
            given = ("--provider", provider, "--base-url", teacher.url, "--model", "fake-1")
            more = ("--max-tokens", 128, "--concurrency", 64, "--no-redact")
            teaching = Teaching(prompts, (*given, *more), root / f"{name}-{way}")
            runs[name, way] = (teacher, teaching, teaching.start())
        return {key: finish(*run) for key, run in runs.items()}


def write_short_prompts(path: Path) -> None:
    with path.open("w") as file:
        for number in range(PROMPTS):
            messages = [{"role": "user", "content": f"#{number:06d}{PROMPT_WORDS}"}]
            file.write(json.dumps({"id": f"#{number:06d}", "messages": messages}) + "\n")


def finish(teacher: RunningTeacher, teaching: Teaching, started: Started) -> Paced:
    teaching.finish(started)
    stats: dict[str, Any] = teacher.stats()
    right = read_written(teaching.out / "completions.jsonl").right
    return Paced(
        stats["capacity_used"], stats["requests"], stats["refused_by_limiter"], teacher.log().span_seconds(), right
    )


@pytest.mark.parametrize("way", ["openai_compatible, told", "anthropic, told"])
@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_that_headers_tell_is_used_to_97_percent_and_met_once_in_1000_requests(
    limit: str, way: str, paced: dict[tuple[str, str], Paced]
) -> None:
    run = paced[limit, way]
    assert run.right == PROMPTS
    assert run.seconds >= 60
    assert max(run.used.values()) >= 0.97
    assert run.refused_share <= 0.001


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_that_nobody_tells_is_found_and_used_to_85_percent_and_met_once_in_50(
    limit: str, paced: dict[tuple[str, str], Paced]
) -> None:
    run = paced[limit, "openai_compatible, untold"]
    assert run.right == PROMPTS
    assert max(run.used.values()) >= 0.85
    assert run.refused_share <= 0.02
