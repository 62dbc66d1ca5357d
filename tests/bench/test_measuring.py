import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import orjson
import pytest

from bench.__main__ import BY_NAME, main
from bench.fast_teacher.running import ROOT
from bench.measuring import Bar, Benchmark, Sample, Taken, run


@contextmanager
def numbers() -> Iterator[Callable[[str], Taken]]:
    given = {"half": iter((1.0, 2.0, 3.0)), "whole": iter((2.0, 4.0, 12.0))}
    yield lambda contender: Taken({"seconds": next(given[contender])}, contender)


def benchmark(**fields) -> Benchmark:
    common = {"name": "numbers", "about": "", "setting": {}, "repeats": 3, "open": numbers}
    return Benchmark(**common, contenders=("half", "whole"), comparisons=(("half", "whole"),), **fields)


def test_contenders_take_turns_and_ratios_pair_the_samples_of_one_turn():
    told: list[Sample] = []
    result = run(benchmark(), 3, told.append)
    assert [sample.contender for sample in told] == ["half", "whole"] * 3
    assert result.ratios[0].spread.model_dump() == {"min": 0.25, "median": 0.5, "max": 0.5}
    assert result.skipped == {}


def test_a_contender_that_cannot_take_part_is_left_out_with_its_reason_and_its_ratios():
    result = run(benchmark(prepare=lambda name: "no such package" if name == "whole" else None), 2, lambda _: None)
    assert result.skipped == {"whole": "no such package"}
    assert list(result.contenders) == ["half"]
    assert result.ratios == []


def test_contenders_that_did_other_work_are_an_error():
    def differ(samples):
        raise ValueError("other work")

    with pytest.raises(ValueError, match="other work"):
        run(benchmark(check=differ), 1, lambda _: None)


BARS = (
    Bar("half's seconds", "seconds", "half", None, 2.0),
    Bar("half ÷ whole", "seconds", "half", "whole", 0.4),
    Bar("whole ÷ half", "seconds", "whole", "half", 2.0, at_least=True),
)


def test_a_bar_is_met_or_missed_by_the_median_and_unknown_where_a_contender_is_missing():
    judged = run(benchmark(bars=BARS), 3, lambda _: None).bars
    assert [(bar.figure, bar.verdict) for bar in judged] == [(2.0, "met"), (0.5, "missed"), (2.0, "met")]
    alone = benchmark(bars=BARS, prepare=lambda name: "no such package" if name == "whole" else None)
    judged = run(alone, 3, lambda _: None).bars
    assert [(bar.figure, bar.verdict) for bar in judged] == [(2.0, "met"), *[(None, "not measured")] * 2]


def test_a_bar_that_is_missed_by_less_than_is_shown_is_missed():
    @contextmanager
    def open_one() -> Iterator[Callable[[str], Taken]]:
        yield lambda _: Taken({"seconds": 2.00001}, None)

    judged = run(benchmark(bars=BARS[:1])._replace(open=open_one), 1, lambda _: None).bars
    assert [(bar.figure, bar.verdict) for bar in judged] == [(2.0, "missed")]


@pytest.mark.parametrize("missed", [True, False])
def test_the_command_says_each_verdict_keeps_it_and_ends_with_code_1_where_a_bar_is_missed(
    tmp_path, monkeypatch, capsys, missed
):
    monkeypatch.setattr("bench.__main__.RESULTS", tmp_path)
    bars = BARS[:2] if missed else BARS[::2]
    monkeypatch.setitem(BY_NAME, "numbers", [benchmark(bars=bars)])
    if missed:
        with pytest.raises(SystemExit) as ended:
            main("numbers")
        assert ended.value.code == 1
    else:
        main("numbers")
    said = capsys.readouterr().out
    assert "half's seconds: 2, bar ≤ 2: met" in said
    assert ("half ÷ whole: 0.5, bar ≤ 0.4: missed" if missed else "whole ÷ half: 2, bar ≥ 2: met") in said
    kept = orjson.loads((tmp_path / "numbers.json").read_bytes())["bars"]
    assert [bar["verdict"] for bar in kept] == ["met", "missed" if missed else "met"]


def measured(*command: str) -> dict:
    given = [sys.executable, "-m", "bench.measured", sys.executable, "-c", *command]
    return orjson.loads(subprocess.run(given, cwd=ROOT, capture_output=True, check=True).stdout)


def test_a_command_is_measured_with_its_children_and_its_last_line_is_kept():
    used = measured(
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(10**7))']); print('done')"
    )
    assert (used["code"], used["said"]) == (0, "done")
    assert used["cpu_seconds"] > 0.05
    assert used["wall_seconds"] > 0


def test_the_memory_of_a_command_is_its_own_and_not_that_of_the_process_which_asked():
    ballast = b"x" * 200_000_000
    assert 20 < measured("x = b'x' * 30_000_000")["rss_mib"] < 150 < len(ballast) / 2**20


def test_a_command_that_fails_is_told_by_its_code():
    assert measured(f"raise SystemExit({os.EX_USAGE})")["code"] == os.EX_USAGE
