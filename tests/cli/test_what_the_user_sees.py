"""What `potstill teach` says where the teacher or its address is at fault: a line or two, the remedy, the exit code."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from potstill.cli import main
from tests.fake_teacher import HANG, Asked, FakeTeacher, Fault, redirect

KEY = "sk-canary-5d1f07c2a9"
QUICK = (2, 0.001, 0.01, 20)
"""Retries without the pauses."""
PROMPTS = 6


class Seen(NamedTuple):
    """How a command ended."""

    code: int
    summary: dict[str, Any]
    said: str
    """Standard error."""
    requests: list[Asked]
    out: Path

    @property
    def error(self) -> str:
        """The one line that says what is wrong; nothing else is said."""
        assert self.said.startswith("error: ")
        assert self.said.count("\n") <= 2
        return self.said


Teach = Callable[..., Seen]


@pytest.fixture
def teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Teach:
    """`teach(teacher, *flags)` asks six prompts, of which `texts` may replace some, with a key that must not be shown."""
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.delenv("POTSTILL_KEY_HOSTS", raising=False)
    monkeypatch.setattr("potstill.llm.retrying.RetryPolicy.__new__.__defaults__", QUICK)
    monkeypatch.setattr("potstill.cli.console.PLAIN_SECONDS", 60.0)  # no progress, however slow the machine

    def run(
        teacher: FakeTeacher | str, *flags: object, texts: dict[int, str] | None = None, with_key: bool = True
    ) -> Seen:
        prompts = tmp_path / "prompts.jsonl"
        texts = {number: f"Which is #{number:04d}?" for number in range(PROMPTS)} | (texts or {})
        rows = ({"id": f"row-{n}", "messages": [{"role": "user", "content": text}]} for n, text in texts.items())
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        address = teacher if isinstance(teacher, str) else teacher.url
        given = ["teach", prompts, "--out", tmp_path / "out", "--base-url", address, "--model", "fake-1", "--json"]
        given += ["--provider", "openai_compatible", "--price", "2.5,10", "--yes"]
        given += ["--api-key-env", "TEACHER_KEY"] if with_key else []
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, [*given, *flags])))
        printed = capsys.readouterr()
        assert KEY not in printed.out + printed.err
        assert "Traceback" not in printed.err
        summary = json.loads(printed.out.splitlines()[-1]) if printed.out else {}
        requests = [] if isinstance(teacher, str) else teacher.requests
        return Seen(int(ended.value.code or 0), summary, printed.err, requests, tmp_path / "out")

    return run


def openai_error(status: int, message: str, code: str | None, kind: str = "invalid_request_error") -> Fault:
    """As OpenAI writes it."""
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return Fault(str(status), status, json.dumps(body).encode())


WRONG_KEY = openai_error(401, "Incorrect API key provided: sk-ca***a9.", "invalid_api_key")
NO_MODEL = openai_error(404, "The model `fake-1` does not exist or you do not have access to it.", "model_not_found")
NO_CREDIT = openai_error(
    429, "You exceeded your current quota, please check your plan.", "insufficient_quota", "insufficient_quota"
)
PAYMENT = openai_error(402, "Insufficient credits. Add more using the dashboard.", None)
TOO_LONG = openai_error(
    400,
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
    "context_length_exceeded",
)
TOO_LARGE = openai_error(413, "Request entity too large", None)


def test_a_missing_key_names_the_variable_and_asks_nothing(teach: Teach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY")
    with FakeTeacher() as teacher:
        seen = teach(teacher)
    assert (seen.code, seen.requests) == (6, [])
    assert "environment variable TEACHER_KEY is not set: export it with the key for 127.0.0.1" in seen.error


@pytest.mark.parametrize(
    ("fault", "code", "status", "said"),
    [
        (WRONG_KEY, 6, "not_authorised", ("HTTP 401", "the key is not accepted: check TEACHER_KEY")),
        (NO_MODEL, 1, "failed", ("HTTP 404", "`fake-1` does not exist", "check the model's name and base_url")),
        (NO_CREDIT, 6, "not_authorised", ("HTTP 429", "no credit left", "add credit or raise the limit, then run")),
        (PAYMENT, 6, "not_authorised", ("HTTP 402", "no credit left", "add credit or raise the limit, then run")),
    ],
    ids=["wrong key", "unknown model", "no credit", "payment required"],
)
def test_what_every_request_would_meet_stops_the_run_after_one(
    teach: Teach, fault: Fault, code: int, status: str, said: tuple[str, ...]
) -> None:
    with FakeTeacher(lambda asked: fault) as teacher:
        seen = teach(teacher)
        assert (seen.code, seen.summary["status"], len(seen.requests)) == (code, status, 1)
        for words in (teacher.url, *said):
            assert words in seen.error


def test_who_sent_no_key_at_all_is_told_how_to_name_one(teach: Teach) -> None:
    with FakeTeacher(lambda asked: WRONG_KEY) as teacher:
        seen = teach(teacher, with_key=False)
    assert seen.code == 6
    assert "no key was sent: name the variable that holds it with --api-key-env or teacher.api_key_env" in seen.error


@pytest.mark.parametrize(
    ("fault", "text", "reason"),
    [
        (TOO_LONG, "Which is #0003?", "maximum context length is 8192 tokens"),
        (TOO_LARGE, "#0003 " + "a long prompt " * 37_500, "Request entity too large"),
    ],
    ids=["over the context window", "half a MB"],
)
def test_a_prompt_that_is_too_long_is_put_aside_alone_with_the_reason(
    teach: Teach, fault: Fault, text: str, reason: str
) -> None:
    with FakeTeacher(lambda asked: fault if asked.mark == "#0003" else None) as teacher:
        seen = teach(teacher, texts={3: text})
    assert (seen.code, seen.summary["answered"], seen.summary["quarantined"]) == (0, 5, 1)
    assert len(seen.requests) == PROMPTS
    assert seen.said.startswith(f"not to be trained on: 1 × error (row-3: error: HTTP {fault.status}")
    assert seen.said.count("\n") == 2
    lines = [json.loads(line) for line in (seen.out / "completions.jsonl").read_text().splitlines()]
    (aside,) = [line for line in lines if line["quarantine"]]
    assert aside["id"] == "row-3"
    assert reason in aside["quarantine"]
    assert "the prompt is longer than the model takes: shorten it" in aside["quarantine"]


@pytest.mark.flow  # it takes seconds to redact
def test_a_prompt_of_5_megabytes_that_the_teacher_takes_is_answered_like_any_other(teach: Teach) -> None:
    with FakeTeacher() as teacher:
        seen = teach(teacher, texts={3: "#0003 " + "a long prompt " * 375_000})
    assert (seen.code, seen.summary["answered"], seen.said) == (0, PROMPTS, "")


def test_a_server_that_hangs_is_given_up_after_the_timeout(teach: Teach) -> None:
    with FakeTeacher(lambda asked: HANG) as teacher:
        started = time.monotonic()
        seen = teach(teacher, "--timeout", 0.5)
        assert time.monotonic() - started < 5
        teacher.wait_for(2)
        assert (seen.code, seen.summary["status"], len(seen.requests)) == (1, "incomplete", 2)
        assert f"no answer from {teacher.url}: no answer within 0.5 s" in seen.error
        assert "Run the same again when it is up" in seen.error
    assert seen.summary["unknown_usd"] > 0, "nobody knows whether it was billed"


def test_while_a_server_hangs_the_progress_says_so(teach: Teach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.cli.console.PLAIN_SECONDS", 0.0)
    with FakeTeacher(lambda asked: HANG) as teacher:
        seen = teach(teacher, "--timeout", 0.5)
    assert "teach: 0 of 6, 0.0/s, 0.0000 USD, 1 failed: no answer within 0.5 s\n" in seen.said


def test_a_host_that_no_name_server_knows_is_named(teach: Teach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", "TEACHER_KEY=no-such-host.invalid")
    seen = teach("https://no-such-host.invalid/v1", "--attest", "a test")
    assert (seen.code, seen.summary["status"], seen.summary["total_cost_usd"]) == (1, "failed", 0)
    assert "no-such-host.invalid" in seen.error
    assert "check base_url and the network" in seen.error


def test_a_redirect_to_another_host_is_not_followed_and_the_key_stays_here(teach: Teach) -> None:
    with FakeTeacher() as elsewhere:
        other = elsewhere.url.replace("127.0.0.1", "localhost")
        with FakeTeacher(lambda asked: redirect(f"{other}/chat/completions")) as teacher:
            seen = teach(teacher)
        assert elsewhere.requests == []
    assert (seen.code, seen.summary["status"], len(seen.requests)) == (1, "failed", 1)
    assert seen.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert "redirects to localhost and that is never followed: check base_url" in seen.error


def test_a_key_does_not_go_over_plain_http_to_another_machine(teach: Teach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", "TEACHER_KEY=llm.example")
    seen = teach("http://llm.example/v1", "--attest", "a test")
    assert (seen.code, seen.summary["attempts"]) == (6, 0)
    assert "TEACHER_KEY does not go over plain http to llm.example: use https" in seen.error
