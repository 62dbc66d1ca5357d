"""`kill -9` in the middle of 100,000 prompts: the same command asks for the rest, and its bill covers both runs."""

import os
import signal
import time
from pathlib import Path

import pytest

from bench.fast_teacher.log import Logged
from bench.fast_teacher.running import RunningTeacher, running
from bench.prompts import write_prompts
from potstill.teacher.collect import read_summary
from tests.teaching import Started, Teaching, bill_usd, read_written

pytestmark = pytest.mark.drill

PROMPTS = 100_000
IN_FLIGHT = 64
LATENCY_MS = 10
"""With its spread, requests do not come and go together: some are in flight whenever the run is killed."""
HALF_SECONDS = 200
RESTART_SECONDS = 1.0
RESTART_TO_START = 1.5
"""A start is mostly imports, which a slow machine takes more than a second for, one time half as long again as another."""


def test_after_a_kill_at_half_of_100_000_prompts_only_what_was_in_flight_is_asked_again(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    write_prompts(prompts, PROMPTS)
    with running(latency_ms=LATENCY_MS, latency_sigma=0.5) as teacher:
        given = ("--provider", "openai_compatible", "--base-url", teacher.url, "--model", "fake-1", "--max-tokens", 256)
        teaching = Teaching(prompts, (*given, "--concurrency", IN_FLIGHT, "--no-redact"), tmp_path)
        first = teaching.start()
        wait_for_half(teacher, first)
        os.kill(first.process.pid, signal.SIGKILL)
        assert first.process.wait() == -signal.SIGKILL
        left = teaching.statuses()
        asked = teacher.log().requests
        before, start_seconds = len(asked), asked[0].at - first.at

        second = teaching.start()
        told = teaching.finish(second)
        log = teacher.log()
    restart_seconds = log.requests[before].at - second.at
    in_flight = left["in_flight"]

    assert 0 < in_flight <= IN_FLIGHT
    written = read_written(teaching.out / "completions.jsonl")
    assert (written.right, written.empty, written.wrong) == (PROMPTS, 0, 0)
    assert told["status"] == "done"
    assert len(log.requests) - PROMPTS == log.billed_twice() <= in_flight

    summary = read_summary(teaching.out)
    stored: dict[str, Logged] = {row.mark: row for row in log.requests}
    """By mark, its last reply: where there are two, the first one died with its client."""
    whole = bill_usd(log.requests)
    assert summary.attempts == PROMPTS + in_flight
    assert summary.cost_usd == bill_usd(stored.values())
    assert summary.unknown == in_flight
    assert bill_usd(log.requests) <= summary.cost_usd + summary.unknown_usd
    off = summary.total_cost_usd / whole - 1
    assert abs(off) <= 0.005
    assert told["cost_usd"] < 0.6 * told["total_cost_usd"], "the second run paid for its half only"
    assert restart_seconds <= max(RESTART_SECONDS, RESTART_TO_START * start_seconds), (
        f"first request {restart_seconds:.2f} s after the restart, {start_seconds:.2f} s after the start, "
        f"at a load of {os.getloadavg()[0]:.1f}: 0.63 s when idle on a faster machine"
    )
    print(
        f"\nkilled with {left['answered']} of {PROMPTS} answered and {in_flight} in flight; asked {log.billed_twice()} again, "
        f"lost 0; first request {start_seconds:.2f} s after the start, {restart_seconds:.2f} s after the restart; {log.span_seconds():.0f} s in all; "
        f"total {summary.total_cost_usd:.4f} of {whole:.4f} USD, {100 * off:+.4f} %"
    )


def wait_for_half(teacher: RunningTeacher, first: Started) -> None:
    deadline = time.monotonic() + HALF_SECONDS
    while teacher.stats()["answered"] < PROMPTS // 2:
        assert first.process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, "the half was not reached"
        time.sleep(0.05)
