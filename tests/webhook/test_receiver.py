"""Every answer of the receiver, over a socket."""

import http.client
import json
import logging
import os
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from potstill.curation.readers import read_lines
from potstill.inbox import count_landed, seal
from potstill.webhook.rate import TokenBucket
from tests.webhook.conftest import CLIENT, SECRETS

pytestmark = pytest.mark.flow

LINES = "application/x-ndjson"


def chat(text: object) -> dict:
    return {"messages": [{"role": "user", "content": str(text)}]}


def prompts(*texts: object) -> dict:
    return {"prompts": [chat(text) for text in texts]}


def logged(text: object) -> dict:
    return {"timestamp": 1, "workload_id": "w", "request": {"model": "m", **chat(text)}}


def landed(home: Path) -> list[str]:
    return [
        read.prompt.messages[0]["content"]
        for path in seal(home, "demo")
        for read in read_lines(BytesIO(path.read_bytes()))
        if read.prompt
    ]


class TestAccepted:
    def test_json_lines_and_the_specifications_envelope_land(self, sender) -> None:
        body = b"\n".join(json.dumps(row).encode() for row in (chat(1), logged(2))) + b"\n\n"
        first = sender.send("m1", body, kind=f"{LINES}; charset=utf-8")
        second = sender.send("m2", prompts(3))
        third = sender.send("m3", {"type": "prompts.landed", "timestamp": "2026-11-24T10:00:00Z", "data": prompts(4)})
        assert [answer.status_code for answer in (first, second, third)] == [202] * 3
        assert first.json() == {"accepted": 2, "rejected": 0, "errors": []}
        assert landed(sender.home) == ["1", "2", "3", "4"]

    def test_lines_that_cannot_be_used_are_named_and_the_others_land(self, sender) -> None:
        body = b'\n{"messages": []}\n' + json.dumps(chat(1)).encode() + b"\n{\n\xff\n[]"
        answer = sender.send("m1", body.replace(b"\xff\n", b""), kind=LINES)
        assert answer.status_code == 202
        assert answer.json() == {
            "accepted": 1,
            "rejected": 3,
            "errors": [
                {"line": 2, "reason": "messages: not a list with at least one message"},
                {"line": 4, "reason": "not valid JSON: unexpected end of data at column 2"},
                {"line": 5, "reason": "a JSON list, not an object"},
            ],
        }
        assert landed(sender.home) == ["1"]

    def test_a_line_of_another_workload_than_the_recipes_is_named_since_curation_would_leave_it_out(self, receiver):
        with receiver(workload="w") as sender:
            answer = sender.send("msg_1", {"prompts": [logged("hello"), chat("no workload")]})
            assert (answer.status_code, answer.json()["accepted"]) == (202, 1)
            assert answer.json()["errors"] == [{"line": 2, "reason": "workload_id is '': this recipe keeps 'w' only"}]

    def test_the_same_again_is_a_duplicate_and_another_body_a_conflict(self, sender) -> None:
        sender.send("m1", prompts(1))
        again = sender.send("m1", prompts(1), age=timedelta(seconds=-1), secret=SECRETS[1])
        assert (again.status_code, again.json()) == (202, {"duplicate": True})
        seal(sender.home, "demo")
        assert sender.send("m1", prompts(1)).json() == {"duplicate": True}
        other = sender.send("m1", prompts(2))
        assert other.status_code == 409
        assert landed(sender.home) == ["1"]

    def test_of_many_at_once_with_one_id_one_lands(self, sender) -> None:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: sender.send("m1", prompts(1)), range(16)))
        assert {answer.status_code for answer in answers} == {202}
        assert sum("accepted" in answer.json() for answer in answers) == 1
        assert landed(sender.home) == ["1"]

    def test_a_second_receiver_remembers_what_the_first_accepted(self, receiver) -> None:
        with receiver() as first:
            first.send("m1", prompts(1))
        with receiver() as second:
            assert second.send("m1", prompts(1)).json() == {"duplicate": True}
            assert second.send("m1", prompts(2)).status_code == 409

    def test_strange_texts_come_out_as_they_went_in(self, sender) -> None:
        texts = ["a\0b", "\u2028\u2029\x85", "e\u0301 日本 🜁", '{"messages": 3}\n"', "\ufeffx"]
        body = b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(chat(text)).encode() for text in texts)
        assert sender.send("m1", body, kind=LINES).json()["accepted"] == len(texts)
        assert landed(sender.home) == texts

    def test_a_line_that_curation_can_mend_is_taken(self, sender) -> None:
        body = b'{"messages": [{"role": "user", "content": "a \\ud800"}]}\n{"prompt": "n\1", "score": NaN}'
        assert sender.send("m1", body, kind=LINES).json() == {"accepted": 2, "rejected": 0, "errors": []}
        assert landed(sender.home) == ["a \ufffd", "n\1"]


class TestRefused:
    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            (b'{"messages": [{"role": "user", "content": "a"', "not valid JSON"),
            (b"[" * 900 + b"]" * 900, "nested too deeply"),
            (b'{"x": ' * 120 + b"1" + b"}" * 120, "nested too deeply"),
            (b'{"role": "user"}', "of no known form, by its fields: role"),
            (b"\0", "not valid JSON"),
        ],
    )
    def test_where_no_line_can_be_used_it_is_422_and_nothing_lands(self, sender, body, reason) -> None:
        answer = sender.send("m1", body, kind=LINES)
        assert answer.status_code == 422
        assert answer.json()["accepted"] == 0
        assert reason in answer.json()["errors"][0]["reason"]
        assert landed(sender.home) == []
        assert sender.send("m1", prompts(1)).status_code == 202, "its id is free"

    def test_of_many_bad_lines_some_are_told_and_all_are_counted(self, sender) -> None:
        answer = sender.send("m1", b"{\n" * 5000, kind=LINES)
        assert answer.status_code == 422
        assert answer.json()["rejected"] == 5000
        assert len(answer.json()["errors"]) == 100

    @pytest.mark.parametrize(
        ("kind", "body"),
        [
            ("text/html", b"{}"),
            ("", b"{}"),
            ("application/json", b"{"),
            ("application/json", b"[]"),
            ("application/json", b"null"),
            ("application/json", b""),
            ("application/json", b'{"prompts": {}}'),
            ("application/json", b'{"uri": 3}'),
            ("application/json", b'{"uri": "file:///x", "prompts": []}'),
            ("application/json", b'{"prompts": []}'),
            (LINES, b""),
        ],
    )
    def test_a_body_that_is_none_of_the_forms_is_422(self, sender, kind, body) -> None:
        assert sender.send("m1", body, kind=kind).status_code == 422

    @pytest.mark.parametrize(
        "path", ["/inbox/other", "/inbox/..%2f..%2fetc", "/inbox/%2e%2e", "/inbox/demo%00", "/inbox/Demo"]
    )
    def test_an_unknown_recipe_is_404_for_those_who_may_send_and_401_for_others(self, sender, path) -> None:
        assert sender.send("m1", prompts(1), path=path).status_code == 404
        assert CLIENT.post(f"{sender.url}{path}", json=prompts(1)).status_code in {401, 404}
        assert {found.name for found in (sender.home / "inbox").iterdir()} == {"demo"}

    def test_an_unknown_recipe_is_not_told_to_those_who_may_not_send(self, sender) -> None:
        known, unknown = (CLIENT.post(f"{sender.url}/inbox/{name}", json=prompts(1)) for name in ("demo", "other"))
        assert (known.status_code, known.content) == (unknown.status_code, unknown.content)
        assert known.status_code == 401

    def test_an_id_with_a_full_stop_could_be_parted_otherwise_and_is_422(self, sender) -> None:
        assert sender.send("m.1", prompts(1)).status_code == 422
        assert sender.send("m" * 257, prompts(1)).status_code == 422

    def test_a_stale_or_early_signature_is_401(self, sender) -> None:
        for age in (timedelta(minutes=5, seconds=2), timedelta(minutes=-5, seconds=-30)):
            assert sender.send("m1", prompts(1), age=age).status_code == 401
        assert sender.send("m1", prompts(1), age=timedelta(minutes=4, seconds=50)).status_code == 202

    def test_any_of_the_secrets_signs_and_no_other(self, sender) -> None:
        codes = [
            sender.send(f"m{number}", prompts(1), secret=secret).status_code for number, secret in enumerate(SECRETS)
        ]
        assert codes == [202, 202, 401]

    def test_over_the_rate_it_is_429_with_the_time_to_wait_and_the_id_stays_free(self, receiver, monkeypatch) -> None:
        now = [0.0]
        monkeypatch.setattr("potstill.webhook.receiver.TokenBucket", partial(TokenBucket, clock=lambda: now[0]))
        with receiver(rate={"per_second": 0.5, "burst": 3}) as sender:
            answers = [sender.send(f"m{number}", prompts(number)) for number in range(4)]
            assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
            assert answers[-1].headers["retry-after"] == "2"
            CLIENT.post(f"{sender.url}/inbox/demo", json=prompts(1))  # an unsigned one takes nothing from the bucket
            now[0] += 1.5
            assert sender.send("m3", prompts(3)).status_code == 429
            now[0] += 0.5
            assert sender.send("m3", prompts(3)).status_code == 202
            assert sender.send("m4", prompts(4)).status_code == 429

    def test_a_store_that_cannot_be_written_is_503_and_nothing_is_accepted(self, sender) -> None:
        landing = sender.home / "inbox/demo/landed"
        landing.rename(landing.with_name("away"))
        answer = sender.send("m1", prompts(1))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
        landing.with_name("away").rename(landing)
        assert sender.send("m1", prompts(1)).status_code == 202


class TestOversized:
    LIMIT = 10_000

    @pytest.fixture
    def small(self, receiver):
        with receiver(max_body_bytes=self.LIMIT, body_seconds=1) as sender:
            yield sender

    def post(self, url: str, headers: dict[str, str], pieces: list[bytes], *, chunked: bool) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        connection.request("POST", "/inbox/demo", iter(pieces), headers, encode_chunked=chunked)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def test_exactly_the_limit_is_taken(self, small) -> None:
        body = json.dumps(prompts(1)).encode()
        assert small.send("m1", body + b" " * (self.LIMIT - len(body))).status_code == 202
        over = small.send("m2", body + b" " * (self.LIMIT - len(body) + 1))
        assert (over.status_code, over.content) == (413, b"")

    def test_an_unsigned_one_is_413_before_its_signature_is_looked_at(self, small) -> None:
        big = b"x" * (self.LIMIT + 1)
        assert self.post(small.url, {"content-length": str(len(big))}, [big], chunked=False) == (413, b"")
        assert self.post(small.url, {"transfer-encoding": "chunked"}, [big], chunked=True) == (413, b"")
        assert CLIENT.post(f"{small.url}/inbox/demo", content=b"x").status_code == 401

    def test_a_declared_length_is_believed_and_nothing_is_read(self, small) -> None:
        for declared in ("10001", "9" * 15):
            with socket.create_connection((urlsplit(small.url).hostname, urlsplit(small.url).port), timeout=5) as raw:
                raw.sendall(f"POST /inbox/demo HTTP/1.1\r\nhost: x\r\ncontent-length: {declared}\r\n\r\n".encode())
                answer = raw.recv(65536)
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert answer.endswith(b"\r\n\r\n")

    def test_a_chunked_flood_is_cut_off_and_not_collected(self, small) -> None:
        sent = 0
        with socket.create_connection((urlsplit(small.url).hostname, urlsplit(small.url).port), timeout=5) as raw:
            raw.sendall(b"POST /inbox/demo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            try:
                for _ in range(4000):
                    raw.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                    sent += 65536
            except OSError:
                pass
        assert sent < 64 * 1024 * 1024, "the connection was closed under it"
        assert small.send("m1", prompts(1)).status_code == 202

    def test_a_body_that_does_not_come_is_408(self, small) -> None:
        with socket.create_connection((urlsplit(small.url).hostname, urlsplit(small.url).port), timeout=5) as raw:
            raw.sendall(b"POST /inbox/demo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nab")
            assert raw.recv(65536).startswith(b"HTTP/1.1 408 ")

    def test_a_line_over_the_longest_is_named(self, receiver) -> None:
        with receiver(max_body_bytes=20_000_000) as sender:
            answer = sender.send("m1", json.dumps(chat("x" * 10_000_000)).encode(), kind=LINES)
        assert answer.status_code == 422
        assert answer.json()["errors"] == [{"line": 1, "reason": "longer than 4,194,304 bytes"}]


class TestAttacks:
    def headers(self, **changes: str) -> dict[str, str]:
        return {"webhook-id": "m1", "webhook-timestamp": str(int(time.time())), "webhook-signature": "v1,AAAA"} | {
            name.replace("_", "-"): value for name, value in changes.items()
        }

    @pytest.mark.parametrize(
        "changes",
        [
            {"webhook_signature": "v1,!!!"},
            {"webhook_signature": "v1,A"},
            {"webhook_signature": "v1"},
            {"webhook_signature": "v1,a,b"},
            {"webhook_signature": ""},
            {"webhook_signature": "v2," + "A" * 44},
            {"webhook_signature": " ".join(["v1,AAAA"] * 5000)},
            {"webhook_timestamp": "nan"},
            {"webhook_timestamp": "1e400"},
            {"webhook_timestamp": "-1"},
            {"webhook_timestamp": "soon"},
            {"webhook_id": ""},
        ],
        ids=repr,
    )
    def test_malformed_headers_are_401(self, sender, changes) -> None:
        answer = CLIENT.post(f"{sender.url}/inbox/demo", content=b"{}", headers=self.headers(**changes))
        assert answer.status_code == 401
        assert "Traceback" not in answer.text

    def test_a_header_given_twice_or_not_at_all_is_401(self, sender) -> None:
        body = json.dumps(prompts(1)).encode()
        good = sender.headers("m1", body)
        for wrong in ([*good.items(), ("webhook-id", "m2")], list(good.items())[1:]):
            assert CLIENT.post(f"{sender.url}/inbox/demo", content=body, headers=wrong).status_code == 401

    def test_a_body_that_is_not_utf_8_is_401(self, sender) -> None:
        answer = CLIENT.post(f"{sender.url}/inbox/demo", content=b"\xff\xfe", headers=self.headers())
        assert answer.status_code == 401

    def test_a_signature_of_another_body_id_or_time_is_401(self, sender) -> None:
        body = json.dumps(prompts(1)).encode()
        good = sender.headers("m1", body)
        for changed in ({"webhook-id": "m2"}, {"webhook-timestamp": str(int(good["webhook-timestamp"]) + 1)}):
            assert CLIENT.post(f"{sender.url}/inbox/demo", content=body, headers=good | changed).status_code == 401
        assert CLIENT.post(f"{sender.url}/inbox/demo", content=body + b" ", headers=good).status_code == 401

    def test_a_huge_header_is_refused_and_the_receiver_lives(self, sender) -> None:
        try:
            answer = CLIENT.post(
                f"{sender.url}/inbox/demo", headers=self.headers(webhook_signature="v1," + "A" * 10_000_000)
            )
            assert answer.status_code in {400, 401, 431}
        except httpx.TransportError:  # closed while it was being sent
            pass
        assert CLIENT.get(f"{sender.url}/health").json() == {"status": "ok"}

    def test_nothing_is_told_of_the_server_and_there_are_no_pages(self, sender) -> None:
        for path in ("/docs", "/redoc", "/openapi.json", "/", "/inbox", "/inbox/", "/inbox/demo/x"):
            answer = CLIENT.get(f"{sender.url}{path}")
            assert answer.status_code == 404
            assert "server" not in answer.headers
        assert CLIENT.get(f"{sender.url}/inbox/demo").status_code == 405

    def test_no_log_holds_what_a_prompt_says(self, sender, caplog) -> None:
        caplog.set_level(logging.DEBUG)
        sender.send("m1", b"\n".join([json.dumps(chat("s3cret words")).encode(), b'{"s3cret": 1}']), kind=LINES)
        sender.send("m1", prompts("s3cret words"))
        sender.send("m2", {"prompts": [{"s3cret": 1}]})
        (sender.home / "inbox/demo/landed").rename(sender.home / "away")
        assert sender.send("m3", prompts("s3cret words")).status_code == 503
        assert "was not accepted" in caplog.text
        assert "s3cret" not in caplog.text


def test_a_sender_that_goes_away_leaves_nothing(sender) -> None:
    with socket.create_connection((urlsplit(sender.url).hostname, urlsplit(sender.url).port), timeout=5) as raw:
        raw.sendall(b"POST /inbox/demo HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nab")
    assert CLIENT.get(f"{sender.url}/health").status_code == 200
    assert count_landed(sender.home, "demo") == 0


def test_the_examples_of_the_docs_send(sender, monkeypatch, capsys) -> None:
    page = (Path(__file__).parents[2] / "docs/webhook.md").read_text().replace("http://127.0.0.1:8380", sender.url)
    python = page.partition("```python\n")[2].partition("```")[0]
    exec(compile(python, "docs/webhook.md", "exec"), {"SECRET": SECRETS[0]})
    assert json.loads(capsys.readouterr().out) == {"accepted": 1, "rejected": 0, "errors": []}
    shell = next(block for block in page.split("```sh\n")[1:] if "curl" in block).partition("```")[0]
    sent = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", shell],
        env=os.environ | {"POTSTILL_WEBHOOK_SECRETS": SECRETS[0]},
        capture_output=True,
        check=True,
    )
    assert json.loads(sent.stdout) == {"accepted": 1, "rejected": 0, "errors": []}
    assert landed(sender.home) == ["def area(r): return 3.14 * r * r"] * 2
