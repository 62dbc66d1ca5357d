"""Every line is accounted for, nothing personal gets through, and no prompt ever changes its split."""

import json
import random
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.artifacts import ArtifactStore
from potstill.curation.curate import (
    PROMPTS,
    QUARANTINE,
    check_splits,
    curate,
    describe,
    read_summary,
    stage_key,
)
from potstill.curation.inputs import find_inputs
from potstill.errors import DataError
from potstill.recipe import Curation
from potstill.records import Prompt, QuarantinedLine, read_jsonl, read_parquet


def chat(text, **more):
    return {"messages": [{"role": "user", "content": text}], **more}


def logged(text, workload="w"):
    return {"workload_id": workload, "request": {"model": "m", "messages": [{"role": "user", "content": text}]}}


class Curated:
    """What a curation left behind."""

    def __init__(self, directory):
        self.prompts = list(read_parquet(directory / PROMPTS, Prompt))
        self.summary = read_summary(directory)
        self.quarantine_path = directory / QUARANTINE
        self.quarantined = list(read_jsonl(self.quarantine_path, QuarantinedLine))

    @property
    def splits(self):
        return {prompt.prompt_id: prompt.split for prompt in self.prompts}


@pytest.fixture
def run(tmp_path):
    def run(*lines, name="in.jsonl", **values):
        path = tmp_path / name
        path.write_bytes(b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines))
        config = Curation(inputs=(str(path),), **values)
        store = ArtifactStore(tmp_path / "home")
        return Curated(store.path(curate(config, "classification", store)))

    return run


class TestAccount:
    def test_every_line_is_somewhere(self, run):
        found = run(
            logged("a"),
            logged("b"),
            logged("a"),
            logged("c", workload="other"),
            logged(" b\r\n"),
            b"{broken",
            workload="w",
            max_bad_fraction=0.5,
        )
        summary = found.summary
        assert (summary.lines_read, summary.kept, summary.exact_duplicates) == (6, 2, 2)
        assert (summary.other_workloads, summary.quarantined) == (1, 1)
        assert sum(summary.splits.values()) == summary.kept == len(found.prompts)
        assert "| **prompts kept** | 2 |" in describe(summary)

    def test_a_prompt_knows_where_it_came_from(self, run, tmp_path):
        found = run(b"", chat("a", id=9, reference="gold", task="w"), chat("a"))
        (prompt,) = found.prompts
        assert prompt.source == f"{tmp_path / 'in.jsonl'}:2"
        assert (prompt.row_id, prompt.reference, prompt.workload) == ("9", "gold", "w")

    def test_an_id_or_workload_that_names_a_person_names_nobody_and_still_tells_rows_apart(self, run):
        rows = [chat(text, id=f"{who}@acme.io", task="for ann@acme.io") for text, who in (("a", "ann"), ("b", "bob"))]
        ann, bob = run(*rows).prompts
        assert "acme" not in f"{ann.row_id}{bob.row_id}{ann.workload}{bob.workload}"
        assert ann.row_id != bob.row_id
        assert run(*rows, name="again.jsonl").prompts[0].row_id == ann.row_id

    @pytest.mark.parametrize(
        ("fractions", "said"),
        [
            ({"test_fraction": 0.0}, "the test split is empty, of 40 prompts: raise test_fraction"),
            ({"test_fraction": 0.99, "validation_fraction": 0.0}, "the train split is empty, of 40 prompts: lower"),
        ],
    )
    def test_an_empty_split_is_told_before_a_teacher_is_paid(self, run, fractions, said):
        found = run(*(logged(f"prompt {n}") for n in range(40)), **fractions)
        with pytest.raises(DataError, match=said):
            check_splits(found.summary)

    def test_unicode_form_and_outer_space_make_no_other_prompt_but_a_system_message_does(self, run):
        system = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "café"}]}
        assert run(chat("café"), chat("  cafe\u0301\n"), system).summary.kept == 2

    def test_a_bad_line_is_quarantined_with_its_number_and_reason_for_the_owner_only(self, run, tmp_path):
        found = run(chat("a"), chat("b"), b'{"mail": "ann@acme.io" ' + b"x" * 500, chat("c"), max_bad_fraction=0.5)
        (row,) = found.quarantined
        assert (row.file, row.line) == (str(tmp_path / "in.jsonl"), 3)
        assert row.reason.startswith("not valid JSON")
        assert len(row.excerpt) == 200
        assert "ann@acme.io" not in row.excerpt
        assert stat.S_IMODE(found.quarantine_path.stat().st_mode) == 0o600

    def test_bytes_that_are_no_text_are_quarantined(self, run):
        found = run(chat("a"), "é".encode("latin-1"), b"\x00\x00", b'{"messages": 1}', max_bad_fraction=0.9)
        assert [row.line for row in found.quarantined] == [2, 3, 4]
        assert found.summary.kept == 1

    def test_personal_data_is_gone_before_the_prompt_has_an_id(self, run):
        found = run(chat("ask ann@acme.io", reference="ann@acme.io"), chat("ask bob@acme.io"))
        (prompt,) = found.prompts
        assert prompt.messages[0]["content"] == "ask person1@example.com"
        assert prompt.reference == "person1@example.com"
        assert found.summary.redactions == {"email": 3}


SECRETS = (
    *("ann@acme.io", "+44 20 7946 0958", "4539 1488 0343 6467", "NL91 ABNA 0417 1643 00"),
    *("ghp_aBaBaBaBaBaBaBaBaBaBaBaBaBaB", "sk-proj-abcdefghijklmnopqrstuvwx"),
)


class TestPrivacy:
    """Wherever personal data stands in a line, no file of the artefact holds it: Parquet is read back, not grepped."""

    def lines(self, secret):
        user = {"role": "user", "content": f"ask {secret}"}
        tool = {"type": "function", "function": {"name": "f", "description": f"calls {secret}"}}
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"to": secret})}}
        turns = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": secret}]
        parts = {"role": "user", "name": secret, "content": [{"type": "text", "text": secret}]}
        answer = {"choices": [{"message": {"role": "assistant", "content": secret}}]}
        request = {"model": "m", "user": secret, "messages": [user], "tools": [tool]}
        yield {"workload_id": "w", "client_id": secret, "request": request, "response": answer}
        yield {"messages": [user, *turns, parts], "reference": secret}
        yield {"messages": [user, *turns], "reference": {"mail": secret}}
        yield {"messages": [{"role": "system", "content": secret}, user, {"role": "assistant", "content": secret}]}
        yield f'{{"messages": [{{"role": "user", "content": "{secret}'.encode()
        yield f"{'x' * 195} {secret} {'x' * 195}".encode()
        yield {"question": secret, secret: 1}
        yield {"messages": [{"role": secret, "content": "x"}]}
        yield chat("nothing personal")

    @pytest.mark.parametrize("secret", SECRETS)
    def test_it_is_in_no_file(self, run, tmp_path, secret):
        found = run(*self.lines(secret), max_bad_fraction=0.9)
        assert (len(found.prompts), len(found.quarantined)) == (5, 4)
        for text in (*map(str, found.prompts), *map(str, found.quarantined)):
            assert secret not in text
        for path in (tmp_path / "home").rglob("*"):
            assert path.is_dir() or secret.encode() not in path.read_bytes()

    def test_it_is_in_no_message_about_too_many_bad_lines(self, run):
        with pytest.raises(DataError) as caught:
            run({"messages": [{"role": "ann@acme.io", "content": "x"}]})
        assert "messages[0].role: 'person1@example.com' is not one of" in str(caught.value)

    def test_the_quarantine_file_stays_private_in_an_export(self, tmp_path):
        path = tmp_path / "in.jsonl"
        path.write_text(json.dumps(chat("a")) + "\n{")
        store = ArtifactStore(tmp_path / "home")
        ref = curate(Curation(inputs=(str(path),), max_bad_fraction=0.5), "classification", store)
        store.export(ref, tmp_path / "out")
        assert stat.S_IMODE((tmp_path / "out" / QUARANTINE).stat().st_mode) == 0o600


SYSTEM = {"role": "system", "content": "be brief"}
TURNS = [
    {"role": "user", "content": "one, for ann@acme.io"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]},
    {"role": "tool", "content": "2", "tool_call_id": "c"},
    {"role": "assistant", "content": "it is 2"},
    {"role": "user", "content": "three"},
]


class TestTurns:
    def test_a_conversation_is_its_last_prompt_or_one_before_each_answer(self, run):
        line = {"messages": [SYSTEM, *TURNS], "id": "x"}
        last = run(line)
        assert [len(prompt.messages) for prompt in last.prompts] == [8]
        each = run(line, turns="each")
        assert [len(prompt.messages) for prompt in each.prompts] == [2, 4, 6, 8]
        assert [prompt.row_id for prompt in each.prompts] == ["x#1", "x#2", "x#3", "x"]
        assert {prompt.reference for prompt in each.prompts} == {None}, "a log's answers are no references"
        assert (each.summary.lines_read, each.summary.earlier_turns, each.summary.kept) == (1, 3, 4)
        assert each.summary.redactions == {"email": 1}

    def test_where_the_last_answer_is_a_reference_each_is(self, run):
        found = run({"messages": [*TURNS, {"role": "assistant", "content": "3"}]}, turns="each")
        assert [prompt.reference for prompt in found.prompts] == ["1", None, "it is 2", "3"]

    def test_requests_of_one_conversation_are_never_on_both_sides(self, run):
        """As a log has them: each request with all that was said before."""
        lines = []
        for number in range(60):
            turns = [{"role": "user", "content": f"conversation {number}"}, *TURNS]
            lines += [{"messages": turns[:length]} for length in (2, 4, 8)]
        found = run(*lines, test_fraction=0.4)
        sides: dict[str, set[str]] = {}
        for prompt in found.prompts:
            sides.setdefault(prompt.messages[0]["content"], set()).add(prompt.split)
        assert len(sides) == 60
        assert {len(splits) for splits in sides.values()} == {1}
        assert {split for splits in sides.values() for split in splits} == {"train", "validation", "test"}
        assert len({prompt.group_id for prompt in found.prompts}) == 60

    def test_a_prompt_of_one_turn_is_its_own_group(self, run):
        [prompt] = run(chat("a")).prompts
        assert prompt.group_id == prompt.prompt_id

    def test_the_same_turn_again_is_one_prompt(self, run):
        found = run({"messages": TURNS}, {"messages": TURNS[:3]}, turns="each")
        assert (found.summary.kept, found.summary.exact_duplicates, found.summary.earlier_turns) == (4, 2, 4)


class TestFiles:
    def test_packed_tables_and_lines_together_are_one_prompt_set(self, tmp_path):
        import gzip

        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = tmp_path / "logs"
        folder.mkdir()
        (folder / "a.jsonl.gz").write_bytes(
            gzip.compress(b"".join(json.dumps(chat(f"a{n}")).encode() + b"\n" for n in range(30)))
        )
        pq.write_table(
            pa.Table.from_pylist([{"prompt": f"ask ann@acme.io {n}"} for n in range(20)]), folder / "b.parquet"
        )
        (folder / "c.csv").write_bytes("prompt\nné 1\na0\n".encode("latin-1"))
        (folder / "d.jsonl").write_bytes('{"prompt": "né 2"}\n'.encode("latin-1"))
        told: list[tuple[int, int]] = []
        store = ArtifactStore(tmp_path / "home")
        config = Curation(inputs=(str(folder),))
        found = Curated(store.path(curate(config, "classification", store, on_progress=lambda *far: told.append(far))))
        summary = found.summary
        assert (summary.lines_read, summary.kept, summary.exact_duplicates, summary.quarantined) == (53, 52, 1, 0)
        assert summary.repaired == {"not_utf8": 1}
        assert summary.redactions == {"email": 20}
        assert f"{folder / 'b.parquet'}:20" in {prompt.source for prompt in found.prompts}
        assert "Mended to be read: 1 × not_utf8." in describe(summary)
        assert told
        assert told == sorted(told)

    def test_a_file_that_is_cut_off_is_told_and_its_beginning_kept(self, tmp_path):
        import gzip

        lines = b"".join(
            json.dumps(chat(f"{n} {random.Random(n).randbytes(90).hex()}")).encode() + b"\n" for n in range(2000)
        )
        (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines)[:-1000])
        store = ArtifactStore(tmp_path / "home")
        found = Curated(store.path(curate(Curation(inputs=(str(tmp_path / "cut.jsonl.gz"),)), "classification", store)))
        [row] = found.quarantined
        assert row.line == found.summary.kept + 1 > 1500
        assert row.reason == "the file cannot be read further: it ends within its gzip data"


class TestFailures:
    @pytest.mark.parametrize("lines", [[], [b""], [b"", b"  ", b"\n"]])
    def test_an_empty_log_says_what_to_give(self, run, lines):
        with pytest.raises(DataError, match=r"in\.jsonl: no line in it: give a request log or chat JSONL"):
            run(*lines)

    def test_too_many_bad_lines_name_the_commonest_reasons_and_the_first_line(self, run):
        lines = [chat(str(number)) for number in range(5)] + [b"{"] * 3 + [{"a": 1}] * 2
        with pytest.raises(DataError) as caught:
            run(*lines)
        message = str(caught.value)
        assert "5 of 10 lines cannot be used, more than max_bad_fraction 0.05" in message
        assert "3 × not valid JSON; 2 × of no known form, by its fields" in message
        assert "in.jsonl:6: not valid JSON" in message

    def test_exactly_the_allowed_share_passes(self, run):
        assert (
            run(*[chat(str(number)) for number in range(8)], b"{", b"{", max_bad_fraction=0.2).summary.quarantined == 2
        )

    def test_an_unknown_workload_names_those_that_are_there(self, run):
        with pytest.raises(DataError, match=r"no prompt of workload 'wrong': the log has right \(2\), other \(1\)"):
            run(logged("a", "right"), logged("b", "right"), logged("c", "other"), workload="wrong")

    def test_a_workload_of_chat_lines_is_to_be_left_out(self, run):
        with pytest.raises(DataError, match=r"'router': 2 lines have no workload_id: leave curation\.workload out$"):
            run(chat("a"), chat("b"), workload="router")
        with pytest.raises(DataError, match=r"the log has other \(1\); 1 line has no workload_id: leave"):
            run(chat("a"), logged("c", "other"), workload="router")

    def test_a_failed_curation_leaves_no_artefact(self, run, tmp_path):
        with pytest.raises(DataError):
            run(b"{")
        assert not (tmp_path / "home" / "artifacts").exists()

    def test_a_missing_input_names_the_pattern(self, tmp_path):
        with pytest.raises(DataError, match=r"input .*nothing-\*\.jsonl: no such file"):
            find_inputs((str(tmp_path / "nothing-*.jsonl"),))

    def test_a_glob_finds_files_once_and_in_order(self, tmp_path):
        for name in ("b.jsonl", "a.jsonl"):
            (tmp_path / name).write_text("{}")
        (tmp_path / "c.jsonl").mkdir()
        found = find_inputs((str(tmp_path / "*.jsonl"), str(tmp_path / "a.jsonl")))
        assert [Path(file.name) for file in found] == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]


class TestKey:
    @pytest.fixture
    def key(self, tmp_path):
        def key(content="{}", folder="one", kind="classification", **values):
            path = tmp_path / folder / "in.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
            return stage_key(Curation(inputs=(str(path),), **values), kind)

        return key

    def test_the_folder_of_the_input_does_not_count(self, key):
        assert key() == key(folder="two")

    def test_bytes_config_and_kind_count(self, key):
        others = [key("{ }"), key(workload="w"), key(test_fraction=0.3), key(split_key="k"), key(kind="extraction")]
        assert len({key(), *others}) == 6


class TestSplit:
    def test_no_prompt_moves_when_new_lines_come(self, run):
        old = [chat(f"prompt {number}") for number in range(200)]
        new = [chat(f"new {number}") for number in range(200)]
        before = run(*old, test_fraction=0.3).splits
        mixed = old + new
        random.Random(0).shuffle(mixed)
        after = run(*mixed, name="later.jsonl", test_fraction=0.3).splits
        assert set(before.values()) == {"train", "validation", "test"}
        assert {identity: after[identity] for identity in before} == before


good = st.builds(chat, st.text(max_size=8)) | st.builds(logged, st.text(max_size=8), st.sampled_from(["w", "x", ""]))
talk = st.lists(st.sampled_from(["user", "assistant", "tool"]), min_size=1, max_size=6).map(
    lambda roles: {"messages": [{"role": role, "content": "x"} for role in roles]}
)
junk = st.binary(max_size=30).filter(lambda data: b"\n" not in data)
deep = st.recursive(
    st.none() | st.text(max_size=4) | st.integers(),
    lambda inner: st.dictionaries(
        st.sampled_from(["messages", "role", "content", "tools", "request"]), inner, max_size=3
    ),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None)
@given(
    lines=st.lists(good | junk | deep | talk, min_size=1, max_size=12),
    workload=st.sampled_from([None, "w"]),
    turns=st.sampled_from(["last", "each"]),
)
def test_lines_in_are_lines_kept_dropped_and_quarantined(tmp_path_factory, lines, workload, turns):
    root = tmp_path_factory.mktemp("account")
    path = root / "in.jsonl"
    path.write_bytes(
        b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in [chat("w", task="w"), *lines])
    )
    store = ArtifactStore(root)
    config = Curation(inputs=(str(path),), workload=workload, turns=turns, max_bad_fraction=0.99)
    found = Curated(store.path(curate(config, "classification", store)))
    summary = found.summary
    assert summary.lines_read == sum(
        bool(line.strip().removeprefix(b"\xef\xbb\xbf")) for line in path.read_bytes().split(b"\n")
    )
    assert summary.lines_read + summary.earlier_turns == (
        summary.kept + summary.exact_duplicates + summary.other_workloads + summary.quarantined
    )
    assert len(found.splits) == len(found.prompts) == summary.kept
    assert len(found.quarantined) == summary.quarantined
