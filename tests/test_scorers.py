import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.recipe import Task
from potstill.records import Completion, Usage
from potstill.scorers import SCORERS, Score, exact_match, score

LIBRARIES = Task(kind="classification", labels=("django", "pandas", "scikit-learn"))
EXTRACTION = Task(kind="extraction")
INVOICE = (
    '{"number": "A-17", "total": 12.5, "lines": [{"sku": "x", "count": 2}, {"sku": "y", "count": 1}], "paid": false}'
)
"""Seven leaves."""


def answer(text):
    return Completion(
        prompt_id="p",
        teacher="m",
        completion=text,
        message={"role": "assistant", "content": text},
        finish_reason="stop",
        usage=Usage(),
    )


def fields(text, target=INVOICE):
    return score(EXTRACTION, answer(text), target)


class TestClassification:
    @pytest.mark.parametrize(
        "text",
        ["pandas", " Pandas.\n", '"pandas"', "`PANDAS`", "“pandas.”", "'pandas'.", "\u00a0pandas\u00a0", "«pandas»"],
    )
    def test_spelling_around_the_label_does_not_count(self, text):
        assert score(LIBRARIES, answer(text), "pandas") == Score(1.0)

    def test_another_label_is_wrong_without_a_remark(self):
        assert score(LIBRARIES, answer("django"), "pandas") == Score(0.0)

    @pytest.mark.parametrize(
        "text", ["", "🐼", "pandas or django", "It is pandas.", "pandas " * 10_000, "NaN", ".", "pandas\npandas", "{}"]
    )
    def test_what_is_no_label_scores_0_and_says_so_in_one_short_line(self, text):
        value, reason = score(LIBRARIES, answer(text), "pandas")
        assert value == 0
        assert reason is not None
        assert reason.startswith("not a label: ")
        assert len(reason) < 120
        assert "\n" not in reason

    def test_a_target_that_is_no_label_leaves_it_unscored(self):
        value, reason = score(LIBRARIES, answer("pandas"), "polars")
        assert value is None
        assert reason == "the target is not a label: 'polars'"

    def test_labels_that_differ_in_case_only_are_told_apart(self):
        task = Task(kind="classification", labels=("US", "us"))
        assert score(task, answer("US"), "US").value == 1
        assert score(task, answer("us"), "US").value == 0
        assert score(task, answer("Us"), "US").value == 0

    def test_composed_and_decomposed_letters_are_one_label(self):
        task = Task(kind="classification", labels=("caf\u00e9", "bar"))
        assert score(task, answer("cafe\u0301"), "caf\u00e9").value == 1

    def test_no_answer_scores_0(self):
        assert score(LIBRARIES, None, "pandas") == Score(0.0, "no answer")


class TestExtraction:
    @pytest.mark.parametrize(
        "text",
        [
            INVOICE,
            f"```json\n{INVOICE}\n```",
            f"```\n{INVOICE}\n```",
            f"Here it is:\n```JSON\r\n{INVOICE}\r\n```\nDone.",
            json.dumps(json.loads(INVOICE), indent=4),
            INVOICE.replace("12.5", "12.50").replace('"count": 2', '"count": 2.0').replace('"A-17"', '" A-17 "'),
        ],
    )
    def test_the_same_fields_are_right_however_written(self, text):
        assert fields(text) == Score(1.0)
        assert exact_match(EXTRACTION, answer(text), INVOICE) is True

    @pytest.mark.parametrize(
        ("text", "agreeing", "given"),
        [
            (INVOICE.replace("A-17", "A-18"), 6, 7),
            (INVOICE.replace("false", "0"), 6, 7),
            (INVOICE.replace("12.5", '"12.5"'), 6, 7),
            (INVOICE.replace("false", "null"), 6, 7),
            ('{"number": "A-17", "total": 12.5}', 2, 2),
            (INVOICE[:-1] + ', "note": "", "extra": {}}', 7, 9),
            ('{"lines": [{"sku": "y", "count": 1}, {"sku": "x", "count": 2}]}', 0, 4),
            ('{"number": {"number": "A-17"}}', 0, 1),
            ("{}", 0, 1),
        ],
    )
    def test_f1_over_leaf_fields(self, text, agreeing, given):
        assert fields(text).value == pytest.approx(2 * agreeing / (7 + given))
        assert exact_match(EXTRACTION, answer(text), INVOICE) is False

    def test_f1_is_scikit_learns_on_indicator_vectors(self):
        f1_score = pytest.importorskip("sklearn.metrics").f1_score
        wanted, given = {"a": 1, "b": 2, "c": 3, "d": 4}, {"a": 1, "b": 5, "c": 3, "e": 6}
        cells = sorted({*wanted.items(), *given.items()})
        expected = f1_score([cell in wanted.items() for cell in cells], [cell in given.items() for cell in cells])
        assert fields(json.dumps(given), json.dumps(wanted)).value == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("text", "remark"),
        [
            ("", "empty"),
            (INVOICE[:40], "at character"),
            (INVOICE + INVOICE, "more than one value"),
            (f"{INVOICE}\n{INVOICE}", "more than one value"),
            (f"```json\n{INVOICE}\n```\n```json\n{INVOICE}\n```", "2 closed fenced blocks"),
            (f"```json\n{INVOICE}", "0 closed fenced blocks"),
            (f"The fields are {INVOICE}", "at character"),
            (f"[{INVOICE}]", "a list, not an object"),
            ('"A-17"', "a str, not an object"),
            ("17", "a int, not an object"),
            ("null", "not an object"),
            ('{"total": NaN}', "NaN is no JSON number"),
            ('{"total": -Infinity}', "-Infinity is no JSON number"),
            ('{"total": 1e999}', "is no JSON number"),
            ('{"total": ' + "9" * 5000 + "}", "too many digits"),
            ('{"total": 1, "total": 12.5}', "a field twice: 'total'"),
            ('{"a":' * 100_000, "nested too deeply"),
            ('{"a":' * 500 + "1" + "}" * 500, "nested too deeply"),
            ("😀" * 300, "at character"),
            ("total total " * 10_000, "at character"),
            ("```\n" * 10_000, "closed fenced blocks"),
            ("{'number': 'A-17'}", "at character"),
        ],
    )
    def test_malformed_answers_score_0_with_a_short_reason(self, text, remark):
        value, reason = fields(text)
        assert value == 0
        assert reason is not None
        assert remark in reason
        assert len(reason) < 200

    @pytest.mark.parametrize("target", ["", "not JSON", "[1]", '{"a": NaN}', '{"a":' * 100_000])
    def test_a_target_that_cannot_be_read_leaves_it_unscored(self, target):
        value, reason = fields(INVOICE, target)
        assert value is None
        assert reason is not None
        assert reason.startswith("the target is no JSON object: ")
        assert exact_match(EXTRACTION, answer(INVOICE), target) is None

    def test_a_large_integer_is_not_the_float_next_to_it(self):
        assert fields('{"id": 9007199254740993}', '{"id": 9007199254740992.0}').value == 0

    def test_empty_containers_are_told_apart(self):
        assert fields("{}", "{}") == Score(1.0)
        assert fields('{"a": []}', '{"a": {}}').value == 0

    def test_a_fence_inside_a_string_is_text(self):
        text = json.dumps({"code": "```python\nx\n```"})
        assert fields(text, text) == Score(1.0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
objects = st.dictionaries(st.text(max_size=5), json_values, max_size=4)
noise = st.text() | st.text(alphabet='{}[]":,`\n truefalsnNaI0123456789.eE+-\\') | st.text(alphabet="pandjgo.'\"` \n")


class TestAnyText:
    @settings(deadline=None)
    @given(noise)
    def test_no_text_raises_or_is_right_by_accident(self, text):
        for task, target in ((LIBRARIES, "pandas"), (EXTRACTION, INVOICE)):
            value, reason = score(task, answer(text), target)
            assert value is not None
            assert 0 <= value <= 1
            assert value < 1 or "pandas" in text.casefold()
            assert reason is None or reason.encode()

    @settings(deadline=None)
    @given(noise)
    def test_no_target_raises(self, target):
        for task in (LIBRARIES, EXTRACTION):
            value, reason = score(task, answer("pandas"), target)
            assert value is not None or reason

    @settings(deadline=None)
    @given(objects)
    def test_every_object_is_equal_to_itself(self, value):
        text = json.dumps(value)
        assert score(EXTRACTION, answer(text), text) == Score(1.0)

    @settings(deadline=None)
    @given(objects, objects)
    def test_f1_is_symmetric_and_1_only_for_exact_matches(self, one, other):
        there = score(EXTRACTION, answer(json.dumps(one)), json.dumps(other))
        back = score(EXTRACTION, answer(json.dumps(other)), json.dumps(one))
        assert there.value == back.value
        if one == other:
            assert there.exact


def test_every_task_kind_has_a_scorer_and_its_metric():
    assert {kind: scorer.metric for kind, scorer in SCORERS.items()} == {
        "classification": "accuracy",
        "extraction": "field_f1",
    }


def test_hostile_answers_take_no_time():
    started = time.perf_counter()
    for text in (
        "[" * 100_000,
        "```" * 30_000,
        "`" * 100_000,
        '{"a":' * 50_000,
        '{"a": "' + "x" * 200_000,
        " " * 200_000,
    ):
        assert fields(text).value == 0
    assert time.perf_counter() - started < 2
