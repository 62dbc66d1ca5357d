"""The embedded backend's child process, spoken to directly."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from potstill.serving.protocol import ApiError, parse_chat
from potstill.student.generator import Conversation, StudentGenerator
from potstill.subprocesses import Child

MESSAGES = [{"role": "user", "content": "what does the still take?"}]
KEY = "only the gateway has it"


@pytest.fixture(scope="module")
def backend(tiny_student, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    ready = tmp_path_factory.mktemp("backend") / "ready.json"
    arguments = ["-m", "potstill.serving.backends.embedded", "--base", str(tiny_student.base), "--ready", str(ready)]
    child = Child([sys.executable, *arguments], env={"POTSTILL_BACKEND_KEY": KEY, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not ready.exists():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        url = json.loads(ready.read_text())["url"]
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=30) as client:
            for name, directory in zip(("one", "two"), tiny_student.adapters, strict=True):
                body = {"lora_name": name, "lora_path": str(directory)}
                assert client.post("/v1/load_lora_adapter", json=body).is_success
            yield client
    finally:
        child.stop()


def ask(backend: httpx.Client, **changes) -> httpx.Response:
    return backend.post(
        "/v1/chat/completions", json={"model": "one", "messages": MESSAGES, "max_tokens": 16, **changes}
    )


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def streamed(backend: httpx.Client, **changes) -> list[dict]:
    answer = ask(backend, stream=True, **changes)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


@pytest.mark.flow
def test_the_served_answer_is_the_evaluated_one_streamed_or_not(backend: httpx.Client, tiny_student) -> None:
    one, two = tiny_student.adapters
    generator = StudentGenerator(str(tiny_student.base), None, {"one": one, "two": two})
    answers = set()
    for model, adapter in (("one", "one"), ("two", "two"), ("base", None)):
        [evaluated] = generator.generate([Conversation(MESSAGES)], adapter=adapter, max_tokens=16)
        answer = ask(backend, model=model)
        assert text_of(answer) == evaluated.text
        assert answer.json()["usage"] == {
            "prompt_tokens": evaluated.input_tokens,
            "completion_tokens": evaluated.output_tokens,
            "total_tokens": evaluated.input_tokens + evaluated.output_tokens,
        }
        events = streamed(backend, model=model, stream_options={"include_usage": True})
        pieces = [choice["delta"].get("content", "") for event in events for choice in event["choices"]]
        assert "".join(pieces) == evaluated.text
        assert len([piece for piece in pieces if piece]) > 1
        assert events[-1]["usage"] == answer.json()["usage"]
        assert [event["choices"][0]["finish_reason"] for event in events[:-1]][-1] == evaluated.finish_reason
        answers.add(evaluated.text)
    assert len(answers) == 3


@pytest.mark.flow
def test_it_answers_only_to_its_key(backend: httpx.Client) -> None:
    for path in ("/health", "/v1/models"):
        assert backend.get(path).is_success
        assert backend.get(path, headers={"authorization": "Bearer other"}).status_code == 401
    for path in ("/v1/chat/completions", "/v1/load_lora_adapter"):
        assert backend.post(path, json={}, headers={"authorization": ""}).status_code == 401


@pytest.mark.flow
def test_an_adapter_name_has_one_meaning(backend: httpx.Client, tiny_student, tmp_path: Path) -> None:
    one, two = map(str, tiny_student.adapters)

    def load(name: str, directory: str) -> httpx.Response:
        return backend.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": directory})

    assert load("one", one).is_success
    assert load("one", two).json()["error"]["code"] == "conflict"
    assert load("base", two).status_code == 400
    assert load("three", str(tmp_path)).json()["error"]["code"] == "adapter_not_loaded"
    assert [model["id"] for model in backend.get("/v1/models").json()["data"]] == ["base", "one", "two"]
    assert ask(backend, model="three").json()["error"]["code"] == "model_not_found"


@pytest.mark.flow
def test_a_prompt_longer_than_the_context_is_refused_and_the_answer_ends_at_it(backend: httpx.Client) -> None:
    long = [{"role": "user", "content": "still " * 300}]
    refused = ask(backend, messages=long)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    usage = ask(backend, max_tokens=100_000).json()["usage"]
    assert usage["total_tokens"] <= 256


@pytest.mark.flow
def test_tools_and_text_parts_reach_the_chat_template(backend: httpx.Client) -> None:
    plain = ask(backend).json()["usage"]["prompt_tokens"]
    parts = [{"type": "text", "text": "what does "}, {"type": "text", "text": "the still take?"}]
    assert ask(backend, messages=[{"role": "user", "content": parts}]).json()["usage"]["prompt_tokens"] == plain
    tool = {"type": "function", "function": {"name": "distil", "parameters": {}}}
    assert ask(backend, tools=[tool]).json()["usage"]["prompt_tokens"] > plain


@pytest.mark.flow
def test_an_answer_says_which_sampling_it_did_not_follow(backend: httpx.Client) -> None:
    greedy, warm = ask(backend, temperature=0, seed=1), ask(backend, temperature=0.7, top_p=0.9)
    assert "x-potstill-not-followed" not in greedy.headers
    assert warm.headers["x-potstill-not-followed"] == "temperature, top_p"
    assert text_of(warm) == text_of(greedy)


@pytest.mark.flow
def test_an_abandoned_answer_frees_the_worker(backend: httpx.Client) -> None:
    """Twenty answers of 200 tokens would take far longer than the one that follows them."""
    started = time.monotonic()
    ask(backend, max_tokens=200)
    one_answer = time.monotonic() - started

    def abandon(*, stream: bool) -> None:
        body = {"model": "one", "messages": MESSAGES, "max_tokens": 200, "stream": stream}
        with httpx.Client(base_url=backend.base_url, headers=backend.headers) as client:
            try:
                with client.stream("POST", "/v1/chat/completions", json=body, timeout=0.2) as answer:
                    next(answer.iter_raw())
            except httpx.ReadTimeout:
                pass

    threads = [threading.Thread(target=abandon, kwargs={"stream": n % 2 == 0}) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    started = time.monotonic()
    ask(backend, max_tokens=1)
    assert time.monotonic() - started < 5 * one_answer


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("stop", ["\n"]),
        ("response_format", {"type": "json_object"}),
        ("logprobs", True),
        ("top_logprobs", 2),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1),
        ("logit_bias", {"5": 1}),
        ("tool_choice", "required"),
        ("max_tokens", 0),
        ("temperature", 3),
        ("messages", []),
        ("guided_json", {}),
    ],
)
def test_a_parameter_that_would_change_the_meaning_is_refused_by_name(name: str, value) -> None:
    with pytest.raises(ApiError, match=name) as caught:
        parse_chat({"model": "one", "messages": MESSAGES, name: value})
    assert caught.value.status == 400
    assert str(caught.value.param).split(".")[0] == name


def test_parameters_at_their_defaults_are_accepted() -> None:
    asked = parse_chat(
        {
            "model": "one",
            "messages": MESSAGES,
            "n": 1,
            "stop": None,
            "response_format": {"type": "text"},
            "logprobs": False,
            "presence_penalty": 0.0,
            "frequency_penalty": 0,
            "logit_bias": {},
            "tool_choice": "auto",
            "max_tokens": 5,
            "max_completion_tokens": 7,
            "temperature": 0.0,
            "top_p": 1.0,
            "user": "somebody",
        }
    )
    assert (asked.token_limit, asked.not_followed) == (7, [])


@pytest.mark.parametrize(
    "message", [{"role": "robot", "content": "x"}, {"content": "x"}, {"role": "user", "content": 5},
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
)  # fmt: skip
def test_messages_that_the_student_cannot_read_are_refused(message: dict) -> None:
    with pytest.raises(ApiError, match=r"messages\.0"):
        parse_chat({"model": "one", "messages": [message]}).conversation()
