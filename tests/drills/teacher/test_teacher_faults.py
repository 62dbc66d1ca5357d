"""A teacher that fails one request in ten: every prompt has its own answer, and the bill is the teacher's."""

from pathlib import Path

import pytest

from bench.fast_teacher.faults import EMPTY, MALFORMED, NO_CHOICES, RATE_LIMITED, RESET, SERVER_ERRORS
from bench.fast_teacher.running import running
from bench.prompts import write_prompts
from potstill.teacher.collect import read_summary
from tests.teaching import Teaching, bill_usd, read_written

pytestmark = pytest.mark.drill

PROMPTS = 2000
IN_FLIGHT = 64
FAULTS = {"latency_ms": 50, "rate_429": 0.05, "rate_5xx": 0.03, "rate_reset": 0.01, "rate_malformed": 0.01}
READABLE = {"", EMPTY, NO_CHOICES}
"""What tells its usage: an answer, and two kinds of malformed replies."""


@pytest.mark.parametrize("provider", ["openai_compatible", "anthropic"])
def test_one_request_in_ten_fails_and_nothing_is_lost_or_paid_twice_that_need_not_be(
    provider: str, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    write_prompts(prompts, PROMPTS)
    with running(**FAULTS) as teacher:
        given = ("--provider", provider, "--base-url", teacher.url, "--model", "fake-1", "--max-tokens", 256)
        teaching = Teaching(prompts, (*given, "--concurrency", IN_FLIGHT), tmp_path)
        told = teaching.finish()
        log = teacher.log()
    faults = log.faults()
    assert {RATE_LIMITED, RESET, *SERVER_ERRORS, *MALFORMED} <= faults.keys(), "each kind was met"

    written = read_written(teaching.out / "completions.jsonl")
    assert (written.right, written.empty, written.wrong) == (PROMPTS, 0, 0)
    assert told["status"] == "done"
    assert log.answered_twice() == 0
    assert log.billed_twice() <= log.billed_and_unusable()

    summary = read_summary(teaching.out)
    readable = bill_usd(row for row in log.requests if row.fault in READABLE)
    unread = [row for row in log.requests if row.is_billed and row.fault not in READABLE]
    whole = bill_usd(log.requests)
    assert summary.attempts == len(log.requests)
    assert summary.cost_usd == readable
    assert summary.unknown == len(unread)
    assert bill_usd(unread) <= summary.unknown_usd
    off = summary.total_cost_usd / whole - 1
    assert abs(off) <= 0.005
    print(
        f"\n{provider}: {len(log.requests)} requests for {PROMPTS} prompts, {faults.total()} faults: "
        f"lost 0, billed twice {log.billed_twice()} of {log.billed_and_unusable()} billed and unusable; "
        f"readable {readable} USD exact, {len(unread)} unknown; "
        f"total {summary.total_cost_usd:.6f} of {whole:.6f} USD, {100 * off:+.3f} %; {log.span_seconds():.1f} s"
    )
