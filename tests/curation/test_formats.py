"""Each known form becomes the prompt that was meant, and what of it cannot be used says why."""

import json
import re
from pathlib import Path

import pytest

from potstill.curation.readers import read_line

USER = {"role": "user", "content": "hello"}
SYSTEM = {"role": "system", "content": "be brief"}
ANSWER = {"role": "assistant", "content": "hi"}
TOOLS = [{"type": "function", "function": {"name": "f"}}]
ANSWERED = {"choices": [{"message": ANSWER, "finish_reason": "stop"}]}


def read(record):
    return read_line(1, json.dumps(record).encode())


STORED = {"object": "chat.completion", "id": "c1", "model": "m", "metadata": {"task": "w"}, **ANSWERED}
BATCH = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": [USER]}}
PAIR = {"input": {"messages": [USER], "tools": TOOLS}, "preferred_output": [ANSWER], "non_preferred_output": [USER]}
SPEND = {"request_id": "s1", "call_type": "acompletion", "model": "m", "spend": 0.1, "request_tags": ["w"]}
TURNS = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]


@pytest.mark.parametrize(
    ("record", "messages", "more"),
    [
        (STORED | {"messages": [USER | {"id": "m1"}]}, [USER], {"row_id": "c1", "workload": "w"}),
        (STORED | {"input": [USER], "metadata": None}, [USER], {"row_id": "c1", "flags": ("no_workload_id",)}),
        (BATCH, [USER], {"row_id": "r1"}),
        (PAIR, [USER], {"tools": TOOLS, "reference": "hi"}),
        (SPEND | {"messages": [USER], "response": ANSWERED}, [USER], {"row_id": "s1", "workload": "w"}),
        (SPEND | {"messages": json.dumps([USER]), "response": "{}"}, [USER], {"row_id": "s1", "workload": "w"}),
        (
            SPEND
            | {"messages": "{}", "proxy_server_request": json.dumps({"messages": [USER], "tools": TOOLS})}
            | {"request_tags": '["User-Agent: openai", "router"]', "status": "failure"},
            [USER],
            {"row_id": "s1", "workload": "router", "tools": TOOLS, "failed_call": True},
        ),
        ({"conversations": TURNS, "id": 3}, [USER], {"row_id": "3", "reference": "hi"}),
        ({"conversations": [*TURNS, TURNS[0]], "system": "be brief"}, [SYSTEM, USER, ANSWER, USER], {}),
        ({"conversations": [{"role": "user", "content": "hello"}]}, [USER], {}),
        ({"instruction": "hello", "input": "", "output": "hi"}, [USER], {"reference": "hi"}),
        ({"instruction": "a", "input": "b"}, [{"role": "user", "content": "a\n\nb"}], {}),
        (
            {"instruction": "hello", "system": "be brief", "history": [["hello", "hi"]]},
            [SYSTEM, USER, ANSWER, USER],
            {},
        ),
        ({"prompt": "hello", "completion": " hi"}, [USER], {"reference": " hi"}),
        ({"prompt": [USER], "completion": [ANSWER], "task": "w"}, [USER], {"reference": "hi", "workload": "w"}),
        ({"prompt": "hello", "system": "be brief", "reference": {"a": 1}}, [SYSTEM, USER], {"reference": '{"a":1}'}),
        ({"messages": [USER | {"weight": 1}, ANSWER | {"weight": 0}, USER]}, [USER, ANSWER, USER], {}),
        ({"messages": [USER, ANSWER | {"weight": 1}], "tools": TOOLS}, [USER], {"reference": "hi", "tools": TOOLS}),
    ],
)
def test_a_record_of_a_known_form_is_a_prompt(record, messages, more):
    found = read(record)
    assert found.reason is None
    expected = {"messages": messages, "tools": None, "workload": "", "row_id": None, "reference": None} | more
    assert found.prompt._asdict() == {"failed_call": False, "flags": (), "answer": found.prompt.answer} | expected


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (STORED, "messages: a stored completion without its prompt: put the messages of GET /v1/chat/completions/ID"),
        (BATCH | {"body": {"input": "x"}}, "body.messages: missing, as in a request to /v1/chat/completions"),
        (PAIR | {"input": {}}, "messages: not a list"),
        (SPEND, "messages: LiteLLM has not kept the prompt: set general_settings.store_prompts_in_spend_logs"),
        (SPEND | {"messages": {}}, "messages: LiteLLM has not kept the prompt"),
        (SPEND | {"call_type": "aembedding"}, "call_type: 'aembedding': chat completions are read"),
        ({"conversations": []}, "conversations: not a list with at least one turn"),
        ({"conversations": ["x"]}, "conversations[0]: not an object"),
        ({"conversations": [TURNS[0], {"from": "function_call", "value": "f()"}]}, "conversations[1].from: 'function_"),
        ({"conversations": [{"from": "human", "value": None}]}, "messages[0].content: neither text"),
        ({"instruction": " "}, "instruction: no text"),
        ({"instruction": "a", "history": [["x"]]}, "history: not a list of pairs"),
        ({"prompt": ""}, "prompt: neither text nor a list of messages"),
        ({"prompt": [1]}, "prompt: neither text nor a list of messages"),
        ({"prompt": []}, "messages: not a list with at least one message"),
    ],
)
def test_a_record_that_cannot_be_used_says_why(record, reason):
    found = read(record)
    assert found.prompt is None
    assert found.reason.startswith(reason)


def test_a_logged_answer_is_flagged_in_every_kind_of_log():
    cut = {"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}
    for record in (
        STORED | {"messages": [USER]} | cut,
        SPEND | {"messages": [USER], "response": cut},
        {"workload_id": "w", "request": {"messages": [USER]}, "response": cut},
    ):
        assert read(record).prompt.flags == ("empty_response", "truncated")


def test_the_reader_that_the_page_shows_reads_what_it_says():
    page = (Path(__file__).parents[2] / "docs" / "readers.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) <= 30
    module = {}
    exec(code, module)
    seen = {"type": "GENERATION", "id": "o1", "traceName": "w", "input": {"messages": [USER], "tools": TOOLS}}
    prompt = module["read"](seen)
    assert (prompt.messages, prompt.tools, prompt.workload, prompt.row_id) == ([USER], TOOLS, "w", "o1")
    assert module["read"](seen | {"input": json.dumps([USER]), "level": "ERROR"}).failed_call
    assert module["read"]({"type": "SPAN", "input": {}}) is None
    with pytest.raises(ValueError, match="messages: not a list"):
        module["read"](seen | {"input": "text"})
