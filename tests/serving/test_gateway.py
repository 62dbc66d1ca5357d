"""`potstill serve` as a client sees it: a real gateway process before a real model process."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from potstill.errors import ArtifactDamagedError, ReleaseError, UsageError
from potstill.release import Release, aliases, resolve, rollback, version_directory
from potstill.serving.serve import serve
from potstill.serving.server import bind
from potstill.subprocesses import process_started_at
from tests.scripted_server import wait_until

MESSAGES = [{"role": "user", "content": "what comes out?"}]

pytestmark = pytest.mark.flow


def ask(url: str, **changes: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": MESSAGES, **changes}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def test_the_recipes_name_is_answered_by_its_champion(served) -> None:
    champion = resolve(served.home, "tiny").name
    by_alias, by_version = ask(served.url), ask(served.url, model=champion)
    assert text_of(by_alias) == text_of(by_version)
    for answer in (by_alias, by_version):
        assert answer.json()["model"] == answer.headers["x-potstill-version"] == champion
        assert answer.json()["usage"]["completion_tokens"] == 12  # the release's own limit
    assert ask(served.url, temperature=0.7).headers["x-potstill-not-followed"] == "temperature"


def test_models_are_the_recipes_and_their_versions(served) -> None:
    models = httpx.get(f"{served.url}/v1/models").json()["data"]
    now = aliases(served.home, "tiny")
    assert {model["id"] for model in models} == {"tiny", f"tiny@{now.champion}", f"tiny@{now.previous}"}
    assert [model["root"] for model in models if model["id"] == "tiny"] == [f"tiny@{now.champion}"]
    assert httpx.get(f"{served.url}/v1/models/tiny").json()["root"] == f"tiny@{now.champion}"
    assert httpx.get(f"{served.url}/health").json()["status"] == "ok"


@pytest.mark.parametrize("model", ["other", "tiny@000000000000", "../tiny", "base"])
def test_an_unknown_model_is_404_and_says_what_there_is(served, model: str) -> None:
    answer = ask(served.url, model=model)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "model_not_found", "model")
    assert f"tiny@{aliases(served.home, 'tiny').champion}" in error["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b'{"model": "tiny"}', 400),
        (b'{"model": 5, "messages": []}', 400),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": 5}]}', 400),
        (b'{"model": "tiny", "messages": ' + b"[" * 500 + b"]" * 500 + b"}", 400),
        (b'{"model": "tiny", "messages": "' + b"x" * (4 * 1024 * 1024) + b'"}', 413),
    ],
)
def test_a_bad_body_is_refused_in_openais_form(served, body: bytes, status: int) -> None:
    answer = httpx.post(f"{served.url}/v1/chat/completions", content=body, timeout=30)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_backends_own_routes_are_not_reachable(served) -> None:
    body = {"lora_name": "x", "lora_path": "/"}
    answer = httpx.post(f"{served.url}/v1/load_lora_adapter", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_a_stream_says_the_same_as_the_answer(served) -> None:
    answer = ask(served.url, stream=True)
    assert answer.headers["x-potstill-version"] == resolve(served.home, "tiny").name
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    events = [httpx.Response(200, text=line).json() for line in lines[:-1]]
    assert lines[-1] == "[DONE]"
    assert {event["model"] for event in events} == {answer.headers["x-potstill-version"]}
    pieces = [choice["delta"].get("content", "") for event in events for choice in event["choices"]]
    assert "".join(pieces) == text_of(ask(served.url))


def test_a_rollback_counts_from_the_next_request_on(served) -> None:
    answers: dict[str, set[str]] = {}
    for _ in range(4):
        now = rollback(served.home, "tiny")
        answer = ask(served.url)
        assert answer.json()["model"] == f"tiny@{now.champion}"
        answers.setdefault(answer.json()["model"], set()).add(text_of(answer))
    assert [len(texts) for texts in answers.values()] == [1, 1]
    assert len(set.union(*answers.values())) == 2


def test_answers_in_flight_keep_their_version_while_aliases_flip(served) -> None:
    expected = {name: text_of(ask(served.url, model=name)) for name in _versions(served.home)}
    mixed: list[str] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            answer = ask(served.url)
            if answer.status_code != 200 or text_of(answer) != expected[answer.json()["model"]]:
                mixed.append(answer.text)

    clients = [threading.Thread(target=client) for _ in range(3)]
    for thread in clients:
        thread.start()
    for _ in range(20):
        rollback(served.home, "tiny")
        time.sleep(0.1)
    stop.set()
    for thread in clients:
        thread.join()
    assert mixed == []


def test_a_killed_model_process_is_said_at_once_and_replaced(served) -> None:
    expected = text_of(ask(served.url))
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 200, "stream": True}
    pid = served.backend().pid
    with httpx.Client(base_url=f"{served.url}/v1", timeout=30) as client:
        with client.stream("POST", "/chat/completions", json=body) as stream:
            pieces = stream.iter_text()
            next(pieces)
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            last = "".join(pieces).split("\n\n")[-2]
        assert '"code":"backend_down"' in last
        answer = client.post("/chat/completions", json={"model": "tiny", "messages": MESSAGES})
        assert time.monotonic() - killed < 2
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "backend_down")
    assert answer.headers["retry-after"]
    assert httpx.get(f"{served.url}/health").status_code == 503
    while ask(served.url).status_code == 503:
        assert time.monotonic() - killed < 120
        time.sleep(0.1)
    assert text_of(ask(served.url)) == expected
    assert httpx.get(f"{served.url}/health").status_code == 200


def test_the_model_process_ends_with_a_killed_server(
    tmp_path: Path,
    release_tiny: Callable[[Path, int], Release],
    run_server: Callable[[Path], AbstractContextManager[Any]],
) -> None:
    release_tiny(tmp_path, 0)
    with run_server(tmp_path) as server:
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert children
        server.process.kill()
        server.process.wait()
        wait_until(
            lambda: all(process_started_at(child.pid) is None for child in children), lambda: "it left an orphan", 5
        )


def test_a_version_that_was_tampered_with_is_not_served(
    tmp_path: Path, release_tiny: Callable[[Path, int], Release]
) -> None:
    release_tiny(tmp_path, 0)
    weights = version_directory(tmp_path, resolve(tmp_path, "tiny")) / "adapter" / "adapter_model.safetensors"
    weights.unlink()
    weights.write_bytes(b"other weights")
    with pytest.raises(ArtifactDamagedError, match="adapter_model"):
        serve(tmp_path, "127.0.0.1", 0, on_ready=lambda url: None)


def test_a_base_that_is_no_longer_the_evaluated_one_is_not_served(
    tmp_path: Path, release_tiny: Callable[..., Release]
) -> None:
    release_tiny(tmp_path, 0, evaluated_on="directory@000000000000")
    with pytest.raises(ReleaseError, match="was evaluated on directory@000000000000"):
        serve(tmp_path, "127.0.0.1", 0, on_ready=lambda url: None)


def test_nothing_released_is_said_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="potstill run"):
        serve(tmp_path, "127.0.0.1", 0, on_ready=lambda url: None)


def test_a_port_that_is_none_is_said_with_the_remedy() -> None:
    with pytest.raises(UsageError, match="a port is 0 to 65535"):
        bind("127.0.0.1", 99_999)


def test_a_taken_port_is_said_with_the_remedy() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(UsageError, match="--port"):
            bind("127.0.0.1", taken.getsockname()[1])


def _versions(home: Path) -> list[str]:
    now = aliases(home, "tiny")
    return [f"tiny@{now.champion}", f"tiny@{now.previous}"]
