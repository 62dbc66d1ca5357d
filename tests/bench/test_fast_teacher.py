import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest

from bench.fast_teacher.dialects import is_answer_to
from bench.fast_teacher.faults import MALFORMED, draw
from bench.fast_teacher.limits import Bucket, duration
from bench.fast_teacher.running import ROOT, RunningTeacher, running
from bench.fast_teacher.settings import Settings

pytestmark = pytest.mark.flow

TRUST = httpx.create_ssl_context()
"""Making one takes longer than the requests of most tests."""


@pytest.fixture(scope="module")
def teacher() -> Iterator[RunningTeacher]:
    with running() as teacher:
        yield teacher


def chat(number: int | str, **fields) -> dict:
    prompt = f"Which one is #{number:04d}?" if isinstance(number, int) else number
    return {"model": "fake-1", "max_tokens": 500, "messages": [{"role": "user", "content": prompt}], **fields}


def ask(teacher: RunningTeacher, *numbers: int | str, **fields) -> list[httpx.Response]:
    with httpx.Client(verify=TRUST) as client:
        return [client.post(f"{teacher.url}/chat/completions", json=chat(number, **fields)) for number in numbers]


def port_of(teacher: RunningTeacher) -> int:
    return httpx.URL(teacher.url).port or 0


def raw(path: str, body: dict, *headers: str) -> bytes:
    content = orjson.dumps(body)
    lines = [f"POST /v1/{path} HTTP/1.1", "Host: x", f"Content-Length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


def read_replies(connection: socket.socket, count: int) -> list[dict]:
    file = connection.makefile("rb")
    replies = []
    for _ in range(count):
        lines = iter(file.readline, b"\r\n")
        length = next(int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length"))
        list(lines)
        replies.append(orjson.loads(file.read(length)))
    return replies


class TestAnswers:
    def test_chat_completions_echo_the_id_of_the_last_user_message_and_tell_their_usage(self, teacher):
        messages = [
            {"role": "user", "content": "first #0001"},
            {"role": "assistant", "content": "answer to #0001"},
            {"role": "user", "content": [{"type": "text", "text": "then #0002 and #0003"}]},
        ]
        reply = ask(teacher, 1, messages=messages)[0].json()
        choice = reply["choices"][0]
        assert is_answer_to(choice["message"]["content"], "#0002")
        assert choice["finish_reason"] == "stop"
        assert reply["usage"]["total_tokens"] == sum(
            reply["usage"][f"{kind}_tokens"] for kind in ("prompt", "completion")
        )
        assert reply["usage"]["completion_tokens"] == len(choice["message"]["content"]) // 4

    def test_messages_are_answered_in_anthropics_form(self, teacher):
        reply = httpx.post(f"{teacher.url}/messages", json=chat(7, system="Be short."), verify=TRUST).json()
        assert (reply["type"], reply["role"], reply["stop_reason"]) == ("message", "assistant", "end_turn")
        assert is_answer_to(reply["content"][0]["text"], "#0007")
        assert set(reply["usage"]) == {"input_tokens", "output_tokens"}

    def test_an_answer_ends_at_max_tokens_and_says_so(self, teacher):
        reply = ask(teacher, 8, max_tokens=20)[0].json()
        assert (reply["usage"]["completion_tokens"], reply["choices"][0]["finish_reason"]) == (20, "length")
        assert len(reply["choices"][0]["message"]["content"]) == 80

    def test_a_prompt_without_an_id_gets_one_of_its_own(self, teacher):
        texts = [reply.json()["choices"][0]["message"]["content"] for reply in ask(teacher, "tea", "coffee", "tea")]
        assert texts[0].split(":")[0] == texts[2].split(":")[0] != texts[1].split(":")[0]

    def test_a_text_is_an_answer_to_its_own_id_only(self):
        assert is_answer_to("answer to #0042: the answer", "#0042")
        assert not is_answer_to("answer to #0042: the answer", "#004")
        assert not is_answer_to("answer to #0042: another answer", "#0042")
        assert not is_answer_to("", "#0042")

    def test_what_is_no_request_is_400_in_the_form_of_its_provider(self, teacher):
        empty = ask(teacher, 1, messages=[])[0]
        assert (empty.status_code, empty.json()["error"]["type"]) == (400, "invalid_request_error")
        other = httpx.post(f"{teacher.url}/messages", content=b"{no", verify=TRUST)
        assert (other.status_code, other.json()["type"]) == (400, "error")


class TestConnections:
    def test_pipelined_requests_are_answered_in_their_order(self):
        with (
            running(latency_ms=20, latency_sigma=1.0) as teacher,
            socket.create_connection(("127.0.0.1", port_of(teacher)), timeout=10) as connection,
        ):
            connection.sendall(b"".join(raw("chat/completions", chat(number)) for number in range(20)))
            texts = [reply["choices"][0]["message"]["content"] for reply in read_replies(connection, 20)]
        assert all(is_answer_to(text, f"#{number:04d}") for number, text in enumerate(texts))

    def test_a_request_may_come_in_any_pieces(self, teacher):
        with socket.create_connection(("127.0.0.1", port_of(teacher)), timeout=10) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in raw("chat/completions", chat(5)):
                connection.sendall(bytes([byte]))
            assert is_answer_to(read_replies(connection, 1)[0]["choices"][0]["message"]["content"], "#0005")

    def test_a_body_of_5_mb_is_read_and_one_of_9_mb_is_413(self, teacher):
        large = ask(teacher, "#0006 " + "x" * 5_000_000)[0]
        assert large.json()["usage"]["prompt_tokens"] > 1_250_000
        with socket.create_connection(("127.0.0.1", port_of(teacher)), timeout=10) as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 9000000\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 413")

    def test_a_client_may_ask_before_it_sends_its_body(self, teacher):
        request = raw("chat/completions", chat(9), "Expect: 100-continue")
        head = request.index(b"\r\n\r\n") + 4
        with socket.create_connection(("127.0.0.1", port_of(teacher)), timeout=10) as connection:
            connection.sendall(request[:head])
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(request[head:])
            assert len(read_replies(connection, 1)) == 1

    def test_a_client_that_wants_its_connection_closed_gets_that(self, teacher):
        with socket.create_connection(("127.0.0.1", port_of(teacher)), timeout=10) as connection:
            connection.sendall(raw("chat/completions", chat(9), "Connection: close"))
            assert len(read_replies(connection, 1)) == 1
            assert connection.recv(1) == b""


def outcome(teacher: RunningTeacher, number: int) -> str:
    """What a client sees of one attempt."""
    try:
        reply = ask(teacher, number)[0]
    except httpx.ReadError:
        return "reset"
    except httpx.RemoteProtocolError:
        return "cut"
    if reply.status_code != 200:
        return str(reply.status_code)
    try:
        body = reply.json()
    except ValueError:
        return "html" if reply.headers["content-type"] == "text/html" else "invalid_json"
    if not body["choices"]:
        return "no_choices"
    if "usage" not in body:
        return "no_usage"
    return "" if body["choices"][0]["message"]["content"] else "empty"


RATES = {"rate_429": 0.2, "rate_5xx": 0.2, "rate_reset": 0.1, "rate_malformed": 0.4}


class TestFaults:
    def test_an_attempt_meets_the_same_fate_in_every_order(self):
        numbers = list(range(40))
        with running(seed=3, **RATES) as teacher:
            forward = {number: [outcome(teacher, number), outcome(teacher, number)] for number in numbers}
            logged = {row.mark: row.fault for row in teacher.log().requests if row.attempt == 1}
        with running(seed=3, **RATES) as teacher:
            first = {number: outcome(teacher, number) for number in reversed(numbers)}
            backward = {number: [first[number], outcome(teacher, number)] for number in reversed(numbers)}
        assert forward == backward
        assert {number: fates[0] for number, fates in forward.items()} == {
            number: logged[f"#{number:04d}"] for number in numbers
        }
        assert {"", "429", "reset", *MALFORMED} <= {fate for fates in forward.values() for fate in fates}

    def test_each_fault_is_as_frequent_as_told(self):
        settings = Settings(rate_429=0.05, rate_5xx=0.03, rate_reset=0.01, rate_malformed=0.01)
        fates = [draw(settings, f"#{number}", 1).fault for number in range(20_000)]
        shares = {
            "429": fates.count("429"),
            "5xx": sum(fate in {"500", "502", "503", "529"} for fate in fates),
            "reset": fates.count("reset"),
            "malformed": sum(fate in MALFORMED for fate in fates),
        }
        assert {name: round(count / 20_000, 2) for name, count in shares.items()} == {
            "429": 0.05, "5xx": 0.03, "reset": 0.01, "malformed": 0.01,
        }  # fmt: skip

    def test_latency_has_the_mean_that_was_told(self):
        settings = Settings(latency_ms=200, latency_sigma=0.5)
        drawn = [draw(settings, f"#{number}", 1).latency_seconds for number in range(20_000)]
        assert sum(drawn) / len(drawn) == pytest.approx(0.2, rel=0.02)
        assert min(drawn) < 0.1 < 0.4 < max(drawn)

    def test_a_429_says_when_to_come_again_unless_told_not_to(self):
        with running(rate_429=1.0) as teacher:
            assert ask(teacher, 1)[0].headers["retry-after"] == "1"
        with running(rate_429=1.0, retry_after="") as teacher:
            assert "retry-after" not in ask(teacher, 1)[0].headers


class TestLimits:
    def test_requests_beyond_the_bucket_are_429_and_the_headers_say_what_is_left(self):
        with running(rpm=6, burst_seconds=30) as teacher:
            replies = ask(teacher, *range(5))
            stats = teacher.stats()
        assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 429]
        assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["2", "1", "0", "0", "0"]
        assert replies[0].headers["x-ratelimit-limit-requests"] == "6"
        assert replies[3].headers["retry-after"] == "10"
        assert 5000 < int(replies[3].headers["retry-after-ms"]) <= 10_000
        assert (stats["rate_limited"], stats["refused_by_limiter"], stats["answered"]) == (2, 2, 3)
        assert stats["capacity_used"]["requests"] == pytest.approx(1, abs=0.1)

    @pytest.mark.parametrize(("charge", "served"), [("actual", 9), ("max", 2)])
    def test_tokens_are_charged_at_arrival_as_told(self, charge, served):
        with running(tpm=600, burst_seconds=100, charge=charge, answer_tokens=100) as teacher:
            codes = [reply.status_code for reply in ask(teacher, *range(12), max_tokens=400)]
            log = teacher.log()
        assert codes.count(200) == pytest.approx(served, abs=1)
        assert sum(log.tokens()) <= 1000 + 100
        assert log.faults() == {"limiter": codes.count(429)}

    def test_anthropics_headers_tell_times(self):
        with running(rpm=60, tpm=60_000) as teacher:
            headers = httpx.post(f"{teacher.url}/messages", json=chat(1), verify=TRUST).headers
        assert headers["anthropic-ratelimit-requests-remaining"] == "59"
        assert headers["anthropic-ratelimit-tokens-limit"] == "60000"
        assert headers["anthropic-ratelimit-tokens-reset"].startswith("20")
        assert headers["anthropic-ratelimit-tokens-reset"].endswith("Z")

    def test_a_server_may_say_nothing(self):
        with running(rpm=6, burst_seconds=10, headers=False, limit_retry_after=False) as teacher:
            replies = ask(teacher, 1, 2)
        assert [reply.status_code for reply in replies] == [200, 429]
        assert not [name for reply in replies for name in reply.headers if "ratelimit" in name or "retry" in name]

    def test_a_refused_attempt_is_not_counted_so_that_fates_do_not_depend_on_time(self):
        with running(rpm=6, burst_seconds=10) as teacher:
            ask(teacher, 1, 2, 2)
            assert [row.attempt for row in teacher.log().requests] == [1, 1, 1]

    def test_a_bucket_refills_evenly_and_never_beyond_its_capacity(self):
        bucket = Bucket(120, 5, now=0.0)
        bucket.take(10)
        assert bucket.seconds_until(1, now=0.25) == pytest.approx(0.25)
        assert bucket.seconds_until(10, now=100.0) == 0
        assert bucket.level == 10
        assert bucket.used(95.0) == pytest.approx(10 / 200)

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0.012, "12ms"), (1.5, "1.5s"), (360, "6m0s"), (3720.25, "1h2m0.25s"), (0, "0ms")]
    )
    def test_a_duration_is_written_as_openai_writes_it(self, seconds, text):
        assert duration(seconds) == text


class TestCommand:
    def test_the_first_line_is_the_address_and_sigterm_ends_it_with_code_0_and_a_whole_log(self, tmp_path):
        log = tmp_path / "teacher.log"
        command = [sys.executable, "-m", "bench.fast_teacher", "--port", "0", "--no-headers", "--log", str(log)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            url = orjson.loads(process.stdout.readline())["url"]
            httpx.post(f"{url}/chat/completions", json=chat(3))
            process.terminate()
            assert process.wait(10) == 0
        _, mark, status, *_ = log.read_text().split("\t")
        assert (mark, status) == ("#0003", "200")

    def test_a_teacher_that_cannot_start_is_an_error(self, tmp_path: Path):
        with pytest.raises(RuntimeError, match="did not start"), running(log=tmp_path / "no" / "log"):
            pass
