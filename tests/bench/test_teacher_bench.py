import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.fast_teacher.dialects import answer_text
from bench.fast_teacher.faults import draw
from bench.fast_teacher.log import Logged, LoggedRequests
from bench.fast_teacher.running import ROOT, running
from bench.measuring import Benchmark, Sample, Taken, run
from bench.peers.environments import EnvironmentFailedError, Peer, environment
from bench.prompts import PROMPT_TOKENS, prompt_text, write_prompts
from bench.teacher import (
    AT_ONCE,
    IN_200_MS,
    IN_A_FLOW,
    SIZES,
    Command,
    Workload,
    check,
    count_wrong,
    generation_seconds,
    ideal_seconds,
    measure,
    potstill_command,
    take_sample,
)
from potstill.errors import SubprocessError


def test_prompts_are_the_same_in_every_run_and_each_is_another():
    texts = [prompt_text(number) for number in range(1000)]
    assert texts == [prompt_text(number) for number in range(1000)]
    assert len({text.partition(" ")[2] for text in texts}) == 1000
    assert all(text.startswith(f"#{number:06d} ") for number, text in enumerate(texts))
    assert all(PROMPT_TOKENS * 4 <= len(text) < PROMPT_TOKENS * 4 + 12 for text in texts)


class TestIdealTime:
    def test_one_place_takes_the_sum_and_enough_places_the_longest(self):
        marks = [f"#{number}" for number in range(50)]
        workload = Workload(50, 1, latency_ms=100, latency_sigma=0.5)
        latencies = [draw(workload.teacher, mark, 1).latency_seconds for mark in marks]
        assert ideal_seconds(workload, marks) == pytest.approx(sum(latencies))
        assert ideal_seconds(workload._replace(concurrency=80), marks) == max(latencies)

    def test_equal_latencies_go_in_rounds(self):
        assert ideal_seconds(Workload(10, 4, latency_ms=100), [f"#{n}" for n in range(10)]) == pytest.approx(0.3)

    def test_generation_lasts_from_the_first_prompt_to_the_last_reply_and_a_probe_is_no_prompt(self):
        rows = [
            Logged(5.0, "", 400, "bad_request", 0, 0, 0),
            Logged(10.0, "#1", 200, "", 1, 1, 1),
            Logged(11.0, "#2", 200, "", 1, 1, 1),
        ]
        assert generation_seconds(Workload(2, 1, latency_ms=500), LoggedRequests(rows)) == 1.5


class TestRightAnswers:
    def write(self, path: Path, texts: dict[str, str | None]) -> Path:
        path.write_text("".join(json.dumps({"id": mark, "completion": text}) + "\n" for mark, text in texts.items()))
        return path

    def test_an_answer_beside_another_prompt_an_empty_and_a_missing_one_are_wrong(self, tmp_path):
        right = {f"#{number}": answer_text(f"#{number}", 100) for number in range(4)}
        assert count_wrong(self.write(tmp_path / "right", right), 4) == 0
        assert count_wrong(self.write(tmp_path / "right", right), 5) == 1
        swapped = right | {"#0": right["#1"], "#1": right["#0"]}
        assert count_wrong(self.write(tmp_path / "swapped", swapped), 4) == 2
        assert count_wrong(self.write(tmp_path / "empty", right | {"#2": "", "#3": None}), 4) == 2

    def test_one_wrong_answer_voids_the_benchmark(self):
        evidence = {"wrong": 1, "billed_twice": 0}
        sample = Sample(contender="potstill", repeat=0, load_before=0, values={}, evidence=evidence)
        with pytest.raises(ValueError, match="potstill"):
            check([sample])


@pytest.mark.flow
def test_a_sample_of_the_command_line_has_every_answer_and_its_figures(tmp_path):
    workload = Workload(60, 8, latency_ms=10)
    write_prompts(tmp_path / "prompts.jsonl", 60)
    with running(latency_ms=10) as teacher:
        asking = potstill_command(teacher.url, tmp_path / "prompts.jsonl", tmp_path, 8)
        values, evidence = take_sample(asking, workload, teacher, tmp_path / "prompts.jsonl")
    assert (evidence["wrong"], evidence["billed_twice"]) == (0, 0)
    assert json.loads(evidence["said"])["answered"] == 60
    assert 1 <= evidence["peak_in_flight"] <= 8
    assert values["times_the_ideal"] >= 1
    assert 0 < values["start_seconds"] < values["wall_seconds"]


METRICS = ("requests_per_second", "cpu_us_per_request", "start_seconds", "rss_mib", "times_the_ideal")


@pytest.mark.parametrize(
    ("benchmark", "met_where_all_are_alike"),
    [
        (AT_ONCE, [False, False, False]),
        (IN_200_MS, [True, False]),
        (SIZES, [True, True, True, True]),
        (IN_A_FLOW, [True]),
    ],
    ids=lambda given: given.name if isinstance(given, Benchmark) else "",
)
def test_each_bar_names_a_contender_and_a_figure_that_its_benchmark_has(benchmark, met_where_all_are_alike):
    @contextmanager
    def alike():
        yield lambda _: Taken(dict.fromkeys(METRICS, 1.0))

    made = benchmark._replace(open=alike, prepare=lambda _: None, check=lambda _: {})
    verdicts = [bar.verdict for bar in run(made, 1, lambda _: None).bars]
    assert verdicts == ["met" if met else "missed" for met in met_where_all_are_alike]


def test_a_contender_that_fails_is_an_error_with_its_last_words(tmp_path):
    failing = Command([sys.executable, "-c", "raise SystemExit('out of ink')"], {}, tmp_path / "none")
    with pytest.raises(SubprocessError, match="out of ink"):
        measure(failing)


class TestPeers:
    @pytest.mark.flow  # makes an environment, which takes seconds
    def test_a_package_that_cannot_be_installed_is_told_with_pips_words(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        with pytest.raises(EnvironmentFailedError, match="no-such-package"):
            environment(Peer("none", "no-such-package==1", "bench.peers.none"), tmp_path)

    def test_an_environment_is_kept_until_its_requirement_changes(self, tmp_path):
        home = tmp_path / "kept"
        home.mkdir()
        (home / ".requirement").write_text("package==1")
        peer = Peer("kept", "package==1", "bench.peers.kept")
        assert environment(peer, tmp_path) == (home / "bin" / "python", {})

    def test_a_tokenizer_that_is_not_where_it_was_is_told(self, tmp_path):
        home = tmp_path / "kept"
        (home / "lib/python3/site-packages/words").mkdir(parents=True)
        (home / ".requirement").write_text("package==1")
        peer = Peer("kept", "package==1", "bench.peers.kept", tokenizers="words")
        assert environment(peer, tmp_path).variables == {"TIKTOKEN_CACHE_DIR": str(next(home.glob("lib/*/*/words")))}
        shutil.rmtree(home / "lib")
        with pytest.raises(EnvironmentFailedError, match="words is not among its packages"):
            environment(peer, tmp_path)

    def test_what_a_peer_tells_is_one_line_of_json(self):
        code = "from bench.peers.told import Told, tell; told = Told(); told.generated(10); tell(told)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
        told = json.loads(done.stdout)
        assert set(told) == {"wall_seconds", "requests_per_second", "cpu_seconds", "rss_mib"}
        assert min(told.values()) > 0


def test_a_name_that_is_no_benchmark_is_refused_with_those_that_are():
    with pytest.raises(SystemExit, match=r"no benchmark nothing: there are .*teacher_at_once"):
        main("nothing")
