import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from potstill.errors import DataError
from potstill.teacher.replay import KEY_LETTERS, Bucket, answer_key, load_answers, prompt_letters

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples/demo"
ASKED = [{"role": "system", "content": "Name it."}, {"role": "user", "content": "Graph of nodes.\n\nBy a.b@mail.test"}]
RECORDED = [ASKED[0], {"role": "user", "content": "Graph of nodes.\n\nBy someone@example.com"}]


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    return write(tmp_path / "answers.jsonl", [{"messages": RECORDED, "completion": "networkx"}])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "potstill.teacher.replay", *map(str, arguments)]


@contextmanager
def replaying(answers: Path, *arguments: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = subprocess.Popen(
        command(answers, "--port", 0, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"], process
    finally:
        process.kill()
        process.communicate()


def ask(url: str, messages: list[dict[str, Any]], **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/chat/completions", json={"model": "m-1", "messages": messages, **fields})


def test_a_recorded_prompt_gets_its_answer_although_redaction_changed_it_and_all_is_counted(answers, tmp_path) -> None:
    log = tmp_path / "served.jsonl"
    with replaying(answers, "--latency-ms", 1, "--log", log) as (url, process):
        found = ask(url, ASKED)
        cut = ask(url, ASKED, max_tokens=1).json()
        missing = ask(url, [{"role": "user", "content": "never asked"}])
        broken = httpx.post(f"{url}/chat/completions", content=b"{}")
        stats = httpx.get(f"{url}/replay/stats").json()
        models = httpx.get(f"{url}/models").json()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        assert process.communicate()[1] == ""

    body = found.json()
    assert found.status_code == 200
    assert (body["object"], body["model"], body["system_fingerprint"]) == ("chat.completion", "m-1", "fp_replay")
    assert body["choices"][0]["message"]["content"] == "networkx"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 2 + 9, "completion_tokens": 2, "total_tokens": 13}
    assert found.headers["x-ratelimit-limit-requests"] == "6000"
    assert found.headers["x-ratelimit-remaining-requests"] in {"5999", "6000"}
    assert found.headers["x-ratelimit-limit-tokens"] == "2000000"
    assert (cut["choices"][0]["message"]["content"], cut["choices"][0]["finish_reason"]) == ("netw", "length")
    assert (missing.status_code, missing.json()["error"]["code"]) == (400, "no_recorded_answer")
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_body")
    assert stats == {"requests": 4, "answered": 2}
    assert models["data"][0]["object"] == "model"
    served = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["status"] for row in served] == [200, 200, 400, 400]
    assert served[0]["usage"]["total_tokens"] == 13


def test_the_limit_that_the_headers_state_is_the_limit_that_holds(answers) -> None:
    with replaying(answers, "--latency-ms", 0, "--rpm", 3) as (url, _):
        replies = [ask(url, ASKED) for _ in range(4)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["2", "1", "0", "0"]
    assert replies[3].json()["error"]["code"] == "rate_limit_exceeded"
    assert 15 <= int(replies[3].headers["retry-after"]) <= 20


def test_tokens_are_limited_alike(answers) -> None:
    with replaying(answers, "--latency-ms", 0, "--tpm", 40) as (url, _):
        replies = [ask(url, ASKED, max_tokens=16) for _ in range(2)]
    assert [reply.status_code for reply in replies] == [200, 429]
    assert "tokens per min: limit 40" in replies[1].json()["error"]["message"]


async def test_requests_in_flight_wait_side_by_side(answers) -> None:
    with replaying(answers, "--latency-ms", 200) as (url, _):
        body = {"model": "m", "messages": ASKED}
        async with httpx.AsyncClient() as client:
            start = time.monotonic()
            one = await client.post(f"{url}/chat/completions", json=body)
            alone = time.monotonic() - start
            many = await asyncio.gather(*(client.post(f"{url}/chat/completions", json=body) for _ in range(10)))
            together = time.monotonic() - start - alone
    assert {reply.status_code for reply in (one, *many)} == {200}
    assert together < 5 * alone


def test_a_taken_port_is_one_clear_line(answers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(command(answers, "--port", port), check=False, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "--port" in ended.stderr


def test_a_missing_file_is_bad_usage(tmp_path) -> None:
    ended = subprocess.run(
        command(tmp_path / "no.jsonl", "--port", 0), check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 2
    assert "no.jsonl" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_two_answers_to_one_prompt_are_refused(tmp_path) -> None:
    rows = [{"messages": ASKED, "completion": "a"}, {"messages": RECORDED, "completion": "b"}]
    with pytest.raises(DataError, match=r"two\.jsonl:2"):
        load_answers(write(tmp_path / "two.jsonl", rows))


def test_what_teach_wrote_can_be_replayed_without_its_quarantined_answers(tmp_path) -> None:
    other = [{"role": "user", "content": "Matrix rank."}]
    rows = [
        {"id": "1", "messages": ASKED, "completion": "networkx", "quarantine": None, "cost_usd": "0.1"},
        {"id": "2", "messages": other, "completion": "no idea", "quarantine": "not one of the labels"},
    ]
    assert list(load_answers(write(tmp_path / "completions.jsonl", rows)).values()) == ["networkx"]


@pytest.mark.parametrize("line", ["{", "3", '{"messages": []}', '{"messages": [1], "completion": ""}'])
def test_a_line_that_is_no_answer_is_named(tmp_path, line) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=r"answers\.jsonl:1"):
        load_answers(path)


def test_the_key_ignores_what_redaction_replaces_and_keeps_the_roles_apart() -> None:
    assert prompt_letters("Call +44 20 7946 0958, key sk-a1b2, mail x.y@z.org") == "callkeymail"
    assert prompt_letters([{"type": "text", "text": "Ab"}, {"type": "image_url"}]) == "ab"
    assert len(prompt_letters("x" * 500)) == KEY_LETTERS
    assert answer_key([{"content": "ab"}, {"content": "c"}]) != answer_key([{"content": "a"}, {"content": "bc"}])


def test_a_bucket_refills_evenly_and_a_request_larger_than_it_waits_for_all_of_it(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("potstill.teacher.replay.time", SimpleNamespace(monotonic=lambda: now[0]))
    bucket = Bucket(60)
    assert bucket.wait_seconds(1000) == 0
    bucket.level -= 60
    assert (bucket.wait_seconds(1), bucket.wait_seconds(1000)) == (1, 60)
    now[0] = 0.75
    assert (bucket.wait_seconds(1), bucket.wait_seconds(1000)) == (0.25, 59.25)


def test_every_prompt_of_the_demo_log_has_a_recorded_answer() -> None:
    answers = load_answers(DEMO / "answers.jsonl")
    prompts, bad = set(), 0
    lines = (DEMO / "requests.jsonl").read_bytes().split(b"\n")[:-1]
    for line in lines:
        try:
            row = json.loads(line)
            workload, messages = row["workload_id"], row["request"]["messages"]
        except (ValueError, TypeError):
            bad += 1
            continue
        if workload == "doc-router":
            prompts.add(answer_key(messages))
    assert prompts == set(answers)
    assert len(answers) == 830
    assert 0 < bad / len(lines) <= 0.04
    assert set(answers.values()) == {"django", "networkx", "pandas", "sklearn", "sympy"}
    assert (DEMO / "requests.jsonl").stat().st_size <= 700_000


def test_no_planted_value_is_in_the_recorded_answers() -> None:
    text = (DEMO / "answers.jsonl").read_text()
    assert "@acme-mail.com" in (DEMO / "requests.jsonl").read_bytes().decode("utf-8", "replace")
    assert not any(value in text for value in ("acme-mail", "7946 0958", "161 496 0721", "sk-proj", "AKIA"))
