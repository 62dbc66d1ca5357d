import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from potstill.cli import main
from tests.batch_teacher import BatchTeacher, error
from tests.fake_teacher import (
    BAD_REQUEST,
    HANG,
    NOT_FOUND,
    PRICE,
    SERVER_ERROR,
    UNAUTHORISED,
    Asked,
    FakeTeacher,
)

ROOT = Path(__file__).parents[2]
SUMMARY = [
    "prompts",
    "answered",
    "quarantined",
    "attempts",
    "cost_usd",
    "total_cost_usd",
    "unknown_usd",
    "at_provider",
    "status",
]
GIVEN_PRICE = f"{PRICE.input_per_million},{PRICE.output_per_million}"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("POTSTILL_KEY_HOSTS", raising=False)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.jsonl", 6)


def write_prompts(path: Path, count: int) -> Path:
    lines = (
        {"id": f"row-{number}", "messages": [{"role": "user", "content": f"Which is #{number:04d}?"}]}
        for number in range(count)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def arguments(prompts: Path, url: str, *more: object, price: str | None = GIVEN_PRICE) -> list[str]:
    given = ["teach", prompts, "--provider", "openai_compatible", "--base-url", url, "--model", "fake-1"]
    priced = [] if price is None else ["--price", price]
    return list(map(str, [*given, "--out", prompts.parent / "out", "--json", "--yes", *priced, *more]))


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.out.splitlines()[-1])


def run(capsys: pytest.CaptureFixture[str], given: list[str]) -> Outcome:
    with pytest.raises(SystemExit) as ended:
        main(given)
    printed = capsys.readouterr()
    return Outcome(int(ended.value.code or 0), printed.out, printed.err)


def test_the_summary_is_the_last_line_and_a_second_call_asks_nothing(
    teacher: FakeTeacher, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(capsys, arguments(prompts, teacher.url))
    assert first.code == 0
    assert list(first.summary) == SUMMARY
    billed = float(teacher.billed_usd)
    assert first.summary == dict(zip(SUMMARY, (6, 6, 0, 6, billed, billed, 0, 0, "done"), strict=True))
    written = [json.loads(line) for line in (prompts.parent / "out/completions.jsonl").read_text().splitlines()]
    assert [(line["id"], line["completion"]) for line in written] == [
        (f"row-{n}", f"answer to #{n:04d}") for n in range(6)
    ]
    second = run(capsys, arguments(prompts, teacher.url, "--concurrency", 2))
    assert second.summary == first.summary | {"attempts": 0, "cost_usd": 0}
    assert len(teacher.requests) == 6


def test_what_has_no_flag_is_set_by_name(
    teacher: FakeTeacher, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = {"type": "object", "properties": {"total": {"type": "number"}}}
    given = ["top_p=0.5", "stop=[END, STOP]", f"response_schema={json.dumps(schema)}", "headers.x-title=Potstill"]
    flags = [part for field in given for part in ("--set", field)]
    assert run(capsys, arguments(prompts, teacher.url, *flags)).code == 0
    body = teacher.requests[0].body
    assert (body["top_p"], body["stop"]) == (0.5, ["END", "STOP"])
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert teacher.requests[0].headers["x-title"] == "Potstill"


def test_one_ledger_serves_another_home(
    teacher: FakeTeacher, prompts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ["--ledger", f"sqlite:///{prompts.parent / 'shared.db'}"]
    run(capsys, arguments(prompts, teacher.url, *ledger))
    monkeypatch.setenv("POTSTILL_HOME", str(prompts.parent / "other-home"))
    assert run(capsys, arguments(prompts, teacher.url, *ledger)).summary["attempts"] == 0


def test_refused_and_wrong_answers_are_counted_as_quarantined(
    prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeTeacher(
        lambda asked: BAD_REQUEST if asked.mark == "#0002" else None,
        answer=lambda mark: "maybe" if mark == "#0004" else "yes",
    ) as teacher:
        checks = ["--kind", "classification", "--labels", "yes,no"]
        summary = run(capsys, arguments(prompts, teacher.url, *checks)).summary
    assert (summary["answered"], summary["quarantined"], summary["attempts"]) == (4, 2, 6)


def test_a_spent_budget_is_exit_5_keeps_its_answers_and_a_higher_one_goes_on(
    teacher: FakeTeacher, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(capsys, arguments(prompts, teacher.url, "--max-tokens", 50, "--budget-usd", "0.001"))
    assert (first.code, first.summary["status"]) == (5, "budget_reached")
    assert "raise the cap" in first.err
    assert 0 < first.summary["answered"] < 6
    assert first.summary["total_cost_usd"] <= 0.001
    assert not (prompts.parent / "out").exists()
    second = run(capsys, arguments(prompts, teacher.url, "--max-tokens", 50, "--budget-usd", "1"))
    assert (second.code, second.summary["answered"]) == (0, 6)
    assert second.summary["attempts"] == 6 - first.summary["attempts"]
    assert second.summary["total_cost_usd"] == float(teacher.billed_usd)


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--budget-usd", "-1"], 2, "--budget-usd -1"),
        (["--price", "2.5"], 2, "write IN,OUT"),
        (["--concurrency", "0"], 2, "--concurrency 0"),
        (["--kind", "classification"], 2, "at least two labels"),
        (["--ledger", "nonsense"], 2, "ledger nonsense"),
        (["--choose", "scorer"], 2, "give --kind, or choose first or majority"),
        (["--set", "top_k=5"], 2, "--set top_k=5: what has no flag of its own is headers, api_version"),
        (["--set", "top_p=5"], 2, "--set top_p=5: input should be less than or equal to 1"),
        (["--set", "temperature=0.5"], 2, "temperature has a flag of its own: --temperature"),
        (["--set", "timeout_seconds=5"], 2, "timeout_seconds has a flag of its own: --timeout"),
        (["--set", "top-p=0.5"], 2, "--set top-p=0.5: did you mean top_p? What has no flag of its own is headers,"),
        (["--kind", "classification", "--labels", "billing"], 2, "at least two labels: list them in --labels"),
        (["--set", "headers.authorization=sk-secret"], 2, "--set headers: authorization would carry a key"),
        (["--set", "stop"], 2, "--set stop: write it as FIELD=VALUE"),
        (["--set", "stop=["], 2, "--set stop=[: not valid YAML"),
        (["--api-key-env", "NO_SUCH_KEY"], 6, "NO_SUCH_KEY is not set"),
        (["--api-key-env", "OPENAI_API_KEY"], 6, "does not go to 127.0.0.1"),
        (["--base-url", "https://llm.example/v1"], 6, "--attest"),
        (["--base-url", "https://llm.example/v1", "--attest", "may", "--api-key-env", "K"], 6, "K does not go to"),
    ],
)
def test_wrong_use_is_said_in_a_line_or_two_and_nothing_is_asked(
    teacher: FakeTeacher,
    prompts: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    code: int,
    says: str,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    replaced = more[0] if more[0] in {"--price", "--base-url"} else None
    given = arguments(prompts, teacher.url, price=None if replaced == "--price" else GIVEN_PRICE)
    if replaced == "--base-url":
        place = given.index("--base-url")
        del given[place : place + 2]
    ended = run(capsys, [*given, *more])
    assert ended.code == code
    assert says in ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") <= 2
    assert "sk-secret" not in ended.err + ended.out
    assert teacher.requests == []


@pytest.mark.parametrize("cap", ["nan", "inf"])
def test_a_cap_that_caps_nothing_is_refused(prompts: Path, cap: str) -> None:
    """In a process of its own: where pydantic is loaded already, cyclopts checks the flag itself."""
    given = arguments(prompts, "http://127.0.0.1:9/v1", "--budget-usd", cap)
    command = [sys.executable, "-m", "potstill.cli", *given]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "input should be a finite number" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_unknown_price_refuses_to_start(
    teacher: FakeTeacher, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = run(capsys, arguments(prompts, teacher.url, price=None))
    assert ended.code == 2
    assert "no price known for model 'fake-1'" in ended.err
    assert teacher.requests == []


def test_a_missing_file_is_named(teacher: FakeTeacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = run(capsys, arguments(tmp_path / "nowhere.jsonl", teacher.url))
    assert ended.code == 2
    assert "nowhere.jsonl" in ended.err


def test_a_key_that_is_not_accepted_is_exit_6_after_one_request(
    teacher: FakeTeacher, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher.behaviour = lambda asked: UNAUTHORISED
    ended = run(capsys, arguments(prompts, teacher.url))
    assert (ended.code, ended.summary["status"], len(teacher.requests)) == (6, "not_authorised", 1)


def test_a_server_that_is_down_is_exit_1_and_says_what_to_do(
    prompts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.llm.retrying.RetryPolicy.__new__.__defaults__", (2, 0.001, 0.01, 20))
    with FakeTeacher() as teacher:
        url = teacher.url
    ended = run(capsys, arguments(prompts, url))
    assert (ended.code, ended.summary["status"], ended.summary["answered"]) == (1, "incomplete", 0)
    assert f"no answer from {url}: no connection: connection refused. Run" in ended.err
    assert "Run the same again" in ended.err


def test_a_prompt_that_stays_unanswered_is_exit_1_and_incomplete(
    prompts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.llm.retrying.RetryPolicy.__new__.__defaults__", (2, 0.001, 0.01, 20))
    with FakeTeacher(lambda asked: SERVER_ERROR if asked.mark == "#0003" else None) as teacher:
        ended = run(capsys, arguments(prompts, teacher.url))
    assert (ended.code, ended.summary["status"], ended.summary["answered"]) == (1, "incomplete", 5)
    assert "1 prompts have no answer yet" in ended.err


def test_an_address_that_is_wrong_is_exit_1_and_failed(
    teacher: FakeTeacher, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher.behaviour = lambda asked: NOT_FOUND
    ended = run(capsys, arguments(prompts, teacher.url))
    assert (ended.code, ended.summary["status"], len(teacher.requests)) == (1, "failed", 1)
    assert "check the model's name and base_url" in ended.err


def test_a_ledger_that_breaks_is_exit_1_and_the_summary_says_what_is_still_known(
    prompts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.ledger.grouping.RETRY_SECONDS", 0.2)

    def drop_the_table(asked: Asked) -> None:
        if asked.number == 3:
            with closing(sqlite3.connect(prompts.parent / "home/ledger.db")) as ledger:
                ledger.execute("DROP TABLE attempts")

    with FakeTeacher(drop_the_table) as teacher:
        ended = run(capsys, arguments(prompts, teacher.url, "--concurrency", 1))
    assert ended.code == 1
    assert "no such table: attempts" in ended.err
    assert list(ended.summary) == SUMMARY
    assert (ended.summary["status"], ended.summary["attempts"], ended.summary["answered"]) == ("failed", 3, None)


@pytest.mark.flow
@pytest.mark.parametrize("times", [1, 3])
def test_an_interrupted_command_is_exit_130_and_sums_up_what_was_answered(prompts: Path, times: int) -> None:
    with FakeTeacher(lambda asked: HANG if asked.number == 3 else None) as teacher:
        command = [sys.executable, "-m", "potstill.cli", *arguments(prompts, teacher.url, "--concurrency", 1)]
        started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        teacher.wait_for(4)
        for _ in range(times):
            started.send_signal(signal.SIGINT)
            time.sleep(0.02)
        out, err = started.communicate(timeout=20)
    summary = json.loads(out)
    assert (started.returncode, summary["status"], summary["answered"]) == (130, "interrupted", 3)
    assert summary["unknown_usd"] > 0, "what was in flight may be billed"
    assert err == "interrupted: run the same again to go on\n"


@pytest.mark.flow
def test_an_interrupted_command_says_what_is_at_the_provider_and_the_same_one_collects_it(
    prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BatchTeacher() as teacher:
        teacher.polls = 10**6
        given = arguments(prompts, teacher.url, "--mode", "batch", "--batch-poll-seconds", 0.1)
        started = subprocess.Popen(
            [sys.executable, "-m", "potstill.cli", *given],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        teacher.wait_for("state")
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=20)
        summary = json.loads(out)
        assert (started.returncode, summary["status"]) == (130, "interrupted")
        assert (summary["attempts"], summary["at_provider"]) == (0, 6)
        assert err.splitlines()[-2:] == [
            "6 requests are in batches at the provider: the same command collects them",
            "interrupted: run the same again to go on",
        ]
        for batch in teacher.batches.values():
            teacher.finish(batch)
        again = run(capsys, given)
        assert (again.code, again.summary["answered"], again.summary["at_provider"]) == (0, 6, 0)
        assert len(teacher.batches) == 1


def test_what_stays_bad_in_batches_is_told_and_a_second_call_pays_for_nothing_that_it_would_leave_out(
    prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BatchTeacher() as teacher:

        def answer(mark: str) -> str:
            if mark == "#0004":
                teacher.outcomes[mark] = error(500, "api_error")
            return "maybe" if mark == "#0004" else "yes"

        teacher.answer = answer
        given = ["--mode", "batch", "--batch-poll-seconds", 0.01, "--quality-retries", 1]
        given += ["--kind", "classification", "--labels", "yes,no"]
        first = run(capsys, arguments(prompts, teacher.url, *given))
        assert (first.code, first.summary["answered"], first.summary["quarantined"]) == (0, 5, 1)
        assert "1 prompts keep their bad answers: the batches brought no further sample" in first.err
        teacher.outcomes.clear()
        calls = len(teacher.calls)
        assert run(capsys, arguments(prompts, teacher.url, *given)).summary["status"] == "done"
        assert len(teacher.calls) == calls


def test_a_prompt_set_is_taught_like_the_file_that_it_was_made_of(
    teacher: FakeTeacher, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, arguments(prompts, teacher.url)).code == 0
    curated = ["curate", str(prompts), "--out", str(tmp_path / "set"), "--kind", "extraction", "--test-fraction", "0.3"]
    assert run(capsys, curated).code == 0
    taught = arguments(tmp_path / "set", teacher.url)
    taught[taught.index("--out") + 1] = str(tmp_path / "of-set")
    ended = run(capsys, taught)
    assert (ended.code, ended.summary["answered"], ended.summary["attempts"]) == (0, 6, 0), "all of it was paid for"
    files = [(tmp_path / name / "completions.jsonl").read_text().splitlines() for name in ("out", "of-set")]
    assert sorted(files[0]) == sorted(files[1])


@pytest.mark.flow
def test_after_kill_9_at_half_only_what_was_in_flight_is_asked_again(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 60)
    killed, held = threading.Event(), set[str]()

    def hold(asked: Asked) -> None:
        """From here on answers wait for the kill, so that four are in flight then, whatever the speed."""
        if asked.number >= 30 and not killed.is_set():
            held.add(asked.mark)

    def answer(mark: str) -> str:
        if mark in held:
            killed.wait(120)
        return f"answer to {mark}"

    with FakeTeacher(hold, answer=answer) as teacher:
        command = [sys.executable, "-m", "potstill.cli", *arguments(prompts, teacher.url, "--concurrency", 4)]
        first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        teacher.wait_for(34, 60)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        before: list[Asked] = list(teacher.requests)
        killed.set()
        assert len(before) == 34
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        after = teacher.requests[len(before) :]
    again = {asked.mark for asked in before} & {asked.mark for asked in after}
    assert again == held, "only those in flight"
    summary = json.loads(second.stdout.splitlines()[-1])
    assert (summary["answered"], summary["attempts"], summary["status"]) == (60, len(after), "done")
    assert len(before) + len(after) == 60 + len(again)
    assert summary["cost_usd"] < summary["total_cost_usd"]
    with closing(sqlite3.connect(tmp_path / "home/ledger.db")) as ledger:
        [[unknown]] = ledger.execute("SELECT count(*) FROM attempts WHERE status = 'unknown'").fetchall()
    assert unknown == len(again) == 4
    told_usd = teacher.billed_usd - usd([asked for asked in before if asked.mark in again])
    with_means = told_usd * (60 + unknown) / 60
    assert summary["total_cost_usd"] == pytest.approx(float(with_means), abs=1e-12), (
        "both runs, and the unknown at the mean"
    )
    assert summary["unknown_usd"] > 0


def usd(requests: list[Asked]) -> Any:
    """What these requests cost at the teacher's price."""
    tokens = [sum(asked.billed[kind] for asked in requests) for kind in range(2)]
    return (tokens[0] * PRICE.input_per_million + tokens[1] * PRICE.output_per_million) / 1_000_000
