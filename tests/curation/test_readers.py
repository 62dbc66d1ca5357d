"""A reader takes what it can use and gives a reason for the rest; nothing that a file holds stops it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.curation.readers import read_lines

USER = {"role": "user", "content": "hello"}
LOGGED = {"workload_id": "w", "request": {"model": "m", "messages": [USER]}}


@pytest.fixture
def read(tmp_path):
    """The lines of a file with these bytes, texts or records in it."""

    def read(*lines):
        as_bytes = [
            line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
            for line in lines
        ]
        path = tmp_path / "in.jsonl"
        path.write_bytes(b"\n".join(as_bytes))
        with path.open("rb") as file:
            return list(read_lines(file))

    return read


class TestRequestLog:
    def test_a_logged_request_becomes_a_prompt(self, read):
        tools = [{"type": "function", "function": {"name": "f"}}]
        (line,) = read(LOGGED | {"id": 7, "request": LOGGED["request"] | {"tools": tools}, "response": {"choices": []}})
        assert line.reason is None
        assert line.prompt.messages == [USER]
        assert line.prompt.tools == tools
        assert (line.prompt.workload, line.prompt.row_id, line.prompt.reference) == ("w", "7", None)

    @pytest.mark.parametrize(
        ("response", "flags"),
        [
            ({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}, ()),
            ({"choices": [{"message": {"content": "hi"}, "finish_reason": "length"}]}, ("truncated",)),
            ({"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}, ("empty_response",)),
            ({"choices": [{"message": {"tool_calls": [{}]}}]}, ()),
            ({"choices": "x"}, ("empty_response",)),
            ({"choices": [3]}, ("empty_response",)),
            (None, ()),
            ("text", ()),
        ],
    )
    def test_what_is_odd_about_the_answer_is_flagged(self, read, response, flags):
        assert read(LOGGED | {"response": response})[0].prompt.flags == flags

    def test_a_failed_call_is_still_a_prompt(self, read):
        (line,) = read(LOGGED | {"response": {"error": {"code": 429}}})
        assert line.prompt.failed_call

    @pytest.mark.parametrize("workload", [None, ""])
    def test_a_line_without_workload_is_flagged(self, read, workload):
        (line,) = read(LOGGED | {"workload_id": workload})
        assert (line.prompt.workload, line.prompt.flags) == ("", ("no_workload_id",))


class TestChat:
    def test_a_last_answer_of_the_assistant_is_the_reference(self, read):
        (line,) = read({"messages": [USER, {"role": "assistant", "content": "hi"}]})
        assert (line.prompt.messages, line.prompt.reference) == ([USER], "hi")

    def test_a_given_reference_wins_over_it(self, read):
        (line,) = read({"messages": [USER, {"role": "assistant", "content": "hi"}], "reference": "gold"})
        assert (line.prompt.messages, line.prompt.reference) == ([USER], "gold")

    def test_an_earlier_answer_stays_in_the_prompt(self, read):
        turns = [USER, {"role": "assistant", "content": "hi"}, USER]
        assert read({"messages": turns})[0].prompt.messages == turns

    @pytest.mark.parametrize(("reference", "kept"), [({"a": 1}, '{"a":1}'), ([1], "[1]"), (0, "0"), (False, "false")])
    def test_a_structured_reference_is_kept_as_json(self, read, reference, kept):
        assert read({"messages": [USER], "reference": reference})[0].prompt.reference == kept

    @pytest.mark.parametrize(("given", "kept"), [(0, "0"), ("x", "x"), (None, None)])
    def test_the_callers_id_is_kept_as_text(self, read, given, kept):
        assert read({"id": given, "messages": [USER]})[0].prompt.row_id == kept

    def test_content_in_parts_is_allowed(self, read):
        message = {"role": "user", "content": [{"type": "text", "text": "hello"}]}
        assert read({"messages": [message]})[0].prompt.messages == [message]

    def test_an_image_cannot_be_distilled(self, read):
        parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": "x"}}]
        (line,) = read({"messages": [{"role": "user", "content": parts}]})
        assert line.reason == "messages[0].content: only text parts can be read, not image_url"


class TestBytes:
    def test_a_byte_order_mark_and_crlf_do_not_matter(self, read):
        text = json.dumps(LOGGED).encode()
        lines = read(b"\xef\xbb\xbf" + text + b"\r", text + b"\r")
        assert [line.reason for line in lines] == [None, None]

    def test_blank_lines_are_skipped_and_numbers_stay_those_of_the_file(self, read):
        assert [line.number for line in read("", LOGGED, "  ", "", LOGGED, "")] == [2, 5]

    @pytest.mark.parametrize(
        ("line", "content", "repairs"),
        [
            ('{"prompt": "é"}'.encode("latin-1"), "é", ("not_utf8",)),
            ('{"prompt": "“5 €”"}'.encode("cp1252"), "“5 €”", ("not_utf8",)),
            (b'{"prompt": "a\x00b\tc"}', "a\x00b\tc", ("control_character",)),
            (b'{"prompt": "a", "score": NaN, "n": -Infinity}', "a", ("not_a_number",)),
            (b'{"prompt": "a \\ud83d b"}', "a \ufffd b", ("lone_surrogate",)),
            (b'{"prompt": "\xe9\x01", "score": NaN}', "é\x01", ("not_utf8", "control_character", "not_a_number")),
            (b'{"prompt": "a", "n": ' + b"1" * 30 + b"}", "a", ()),
        ],
    )
    def test_what_can_be_mended_is_a_prompt_and_told(self, read, line, content, repairs):
        (found,) = read(line)
        assert (found.reason, found.repairs) == (None, repairs)
        assert found.prompt.messages[-1]["content"] == content

    def test_a_line_of_10_mb_is_a_prompt_and_one_without_end_is_held_in_part(self, read, monkeypatch):
        long = {"messages": [{"role": "user", "content": "x" * 10_000_000}]}
        assert read(long)[0].prompt.messages == long["messages"]
        monkeypatch.setattr("potstill.curation.readers.LONGEST_LINE_BYTES", 1000)
        before, endless, after = read(LOGGED, b"x" * 10_000, LOGGED)
        assert (before.reason, after.reason) == (None, None)
        assert endless.reason == "longer than 1,000 bytes"
        assert len(endless.text) < 5000

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (json.dumps(LOGGED)[:-5], "not valid JSON: "),
            (b"\x00\x01\x02", "not valid JSON"),
            (json.dumps(LOGGED).encode("utf-16"), "not UTF-8 text but UTF-16: convert the file"),
            ("é{".encode("latin-1"), "not UTF-8 text, and no JSON in Windows-1252"),
            ("[" * 5000, "not valid JSON"),
            ("3", "a JSON int, not an object"),
            ("null", "a JSON NoneType, not an object"),
            ([LOGGED], "a JSON list, not an object"),
            ({"question": "x", "answer": "y"}, "of no known form, by its fields: answer, question"),
            ({}, "of no known form, by its fields: none"),
            ({"request": "x"}, "request: str, not an object"),
            ({"request": {}}, "messages: not a list with at least one message"),
            ({"request": {"messages": [USER], "tools": {}}}, "tools: dict, not a list"),
            ({"messages": []}, "messages: not a list"),
            ({"messages": "hello"}, "messages: not a list"),
            ({"messages": ["hello"]}, "messages[0]: not an object"),
            (
                {"messages": [USER, {"role": "usr", "content": "x"}]},
                "messages[1].role: 'usr' is not one of assistant, ",
            ),
            ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
            ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content: int, neither text"),
            ({"messages": [{"role": "user"}]}, "messages[0].content: neither text nor a list"),
            ({"messages": [{"role": "system", "content": "x"}]}, "messages: no user message in them"),
            ({"messages": [{"role": "assistant", "content": "x"}]}, "messages: no user message in them"),
            (
                '{"messages": [{"role": "user", "content": ' + "[" * 200 + "]" * 200 + "}]}",
                "nested too deeply: more than 100",
            ),
            ({"messages": [USER], "tools": "x"}, "tools: str, not a list"),
            ({"messages": [USER], "tools": ["x"]}, "tools[0]: str, not an object"),
        ],
    )
    def test_a_line_that_cannot_be_used_carries_its_reason_and_stops_nothing(self, read, line, reason):
        before, bad, after = read(LOGGED, line, LOGGED)
        assert before.prompt is not None
        assert after.prompt is not None
        assert bad.prompt is None
        assert bad.number == 2
        assert bad.reason.startswith(reason)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["user", "assistant"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "messages",
                    "request",
                    "response",
                    "role",
                    "content",
                    "tools",
                    "choices",
                    "message",
                    "tool_calls",
                    "id",
                ]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()), max_size=5))
def test_no_file_makes_it_raise(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    content = b"\n".join(lines)
    path.write_bytes(content)
    with path.open("rb") as file:
        found = list(read_lines(file))
    assert all((line.prompt is None) == bool(line.reason) for line in found)
    assert len(found) <= content.count(b"\n") + 1
