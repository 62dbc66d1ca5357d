"""Flags that only a whole log can raise: each planted oddity is counted, and nothing is where there is no habit."""

import json

import pytest

from potstill.curation.habits import MOST_ANSWERS, Habits
from potstill.curation.readers import read_line

LABELS = ("django.db", "django.utils", "pandas.io", "sympy.stats")


def flags(*logged):
    habits = Habits()
    for system, answer, *more in logged:
        workload = more[0] if more else "w"
        said = [{"role": "system", "content": system}] if system else []
        response = {"choices": [{"message": {"content": answer}, "finish_reason": "stop"}]}
        request = {"messages": [*said, {"role": "user", "content": "x"}]}
        line = read_line(1, json.dumps({"workload_id": workload, "request": request, "response": response}).encode())
        assert line.prompt is not None
        habits.observe(line.prompt)
    return dict(habits.flags())


def labelled(count=80, system="name the package"):
    return [(system, LABELS[number % 4]) for number in range(count)]


class TestFormat:
    @pytest.mark.parametrize(
        "broken", ["The package is pandas.io.", "`pandas.io`", "pandas.io\n\nIt reads files.", "Label: django.db"]
    )
    def test_a_label_with_words_around_it_is_a_break_even_if_it_comes_twice(self, broken):
        assert flags(*labelled(), ("name the package", broken), ("name the package", broken)) == {"format_break": 2}

    @pytest.mark.parametrize("sound", ["django.db.models", "sklearn.svm", " pandas.io\n", "my-pandas.io", "none"])
    def test_a_rare_label_is_none_though_it_begins_like_a_common_one(self, sound):
        assert flags(*labelled(), ("name the package", sound)) == {}

    def test_where_nearly_all_are_json_the_others_are_breaks(self):
        rows = [("extract", json.dumps({"n": number})) for number in range(40)]
        assert flags(*rows, ("extract", "Here you are: {}"), ("extract", "{broken")) == {"format_break": 2}

    def test_free_text_has_no_form_to_break(self):
        rows = [("summarise", f"summary {number}, pandas.io") for number in range(100)]
        assert flags(*rows, ("summarise", '{"a": 1}'), ("summarise", "pandas.io"), ("summarise", "pandas.io")) == {}

    def test_a_few_answers_make_no_habit(self):
        assert flags(*labelled(18), ("name the package", "It is pandas.io")) == {}

    def test_workloads_have_habits_of_their_own(self):
        other = [("chat", f"it is pandas.io, {number}", "other") for number in range(50)]
        assert flags(*labelled(), *other) == {}

    def test_no_more_than_so_many_answers_are_held(self):
        habits = Habits()
        for number in range(MOST_ANSWERS + 500):
            prompt = read_line(
                1, b'{"workload_id": "w", "request": {"messages": [{"role": "user", "content": "x"}]}}'
            ).prompt
            assert prompt is not None
            habits.observe(prompt._replace(answer=f"answer {number}"))
        assert dict(habits.flags()) == {}
        [seen] = habits._workloads.values()
        assert len(seen.answers) == MOST_ANSWERS + 1


class TestVersions:
    def test_a_system_prompt_that_was_changed_is_older_where_it_still_comes(self):
        old, new = "reply with one package name", "you route questions: reply with one package name"
        rows = [(new if number % 4 else old, "x") for number in range(100)]
        assert flags(*rows) == {"older_prompt_version": 25}

    def test_the_present_one_is_that_of_the_end_not_the_commonest(self):
        old, new = "reply with one package name", "you route questions: reply with one package name"
        assert flags(*[(old, "x")] * 200, *[(new, "x")] * 60) == {"older_prompt_version": 200}

    def test_another_task_is_no_version(self):
        assert flags(*[("translate to French", "x")] * 30, *[("name the package of this text", "x")] * 60) == {}

    def test_numbers_that_are_filled_in_make_no_version_and_many_versions_are_a_template(self):
        assert flags(*((f"today is 2026-11-{day:02}", "x") for day in range(1, 29))) == {}
        assert flags(*((f"you help {chr(97 + number % 26)}{number} today", "x") for number in range(26))) == {}
        names = ["ann", "bob", "cem", "dan", "eve"] * 6
        assert flags(*((f"you help {'x' * number} {name} today", "x") for number, name in enumerate(names))) == {}

    def test_without_a_system_prompt_there_is_none(self):
        assert flags(*[("", "x")] * 30) == {}
