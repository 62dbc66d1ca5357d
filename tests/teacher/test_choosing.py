import pytest

from potstill.errors import UsageError
from potstill.recipe import Task
from potstill.records import Completion, Prompt, Usage, best_samples
from potstill.teacher.choosing import check_choice, choice_scores, count_agreeing
from tests.fake_teacher import make_teacher, numbered_rows

CLASSIFY = Task(kind="classification", labels=("spam", "ham"))
EXTRACT = Task(kind="extraction")
URL = "http://127.0.0.1:1/v1"
SCORER = make_teacher(URL, choose="scorer")
INVOICES = ['{"number": "A-17", "total": 1}', '{"number": "A-17", "total": 12}', '{"number": "B-17", "total": 12}']
"""Each of the outer two shares one field of two with the middle one, and none with the other."""


def asked(**fields: object) -> Prompt:
    return numbered_rows(1)[0].prompt.model_copy(update=fields)


def sample(index: int, score: float = 0.0, quarantine: str | None = None, prompt_id: str = "p") -> Completion:
    return Completion(
        prompt_id=prompt_id,
        sample_index=index,
        teacher="m",
        completion=str(index),
        message={"role": "assistant", "content": str(index)},
        finish_reason="stop",
        usage=Usage(),
        choice_score=score,
        quarantine=quarantine,
    )


def test_answers_agree_where_they_mean_the_same() -> None:
    texts = ["yes", " yes\n", "no", '{"a": 1, "b": [2]}', '{"b":[2],"a":1}', '{"a": 1}']
    assert count_agreeing(texts) == [2, 2, 1, 2, 2, 1]
    assert choice_scores(make_teacher(URL, choose="majority"), None, asked(), texts) == [2, 2, 1, 2, 2, 1]


def test_a_scorer_prefers_what_is_nearest_to_the_reference() -> None:
    reference = '{"number": "B-17", "total": 1}'
    assert choice_scores(SCORER, EXTRACT, asked(reference=reference), INVOICES) == [0.5, 0, 0.5]
    assert choice_scores(SCORER, CLASSIFY, asked(reference="ham"), ["spam", "spam", "ham"]) == [0, 0, 1]


def test_without_a_reference_it_prefers_what_the_other_samples_are_nearest_to() -> None:
    assert choice_scores(SCORER, EXTRACT, asked(), INVOICES) == [0.25, 0.5, 0.25]
    assert choice_scores(SCORER, CLASSIFY, asked(), ["spam", "ham", "ham"]) == [0, 0.5, 0.5]
    assert choice_scores(SCORER, CLASSIFY, asked(), ["spam"]) == [0]


@pytest.mark.parametrize("fields", [{"split": "test", "reference": "spam"}, {"reference": "eggs"}])
def test_the_reference_of_a_test_prompt_and_one_that_cannot_be_read_are_not_looked_at(fields: dict[str, str]) -> None:
    assert choice_scores(SCORER, CLASSIFY, asked(**fields), ["spam", "ham", "ham"]) == [0, 0.5, 0.5]


def test_the_first_is_chosen_where_nothing_else_is_said() -> None:
    assert choice_scores(make_teacher(URL), CLASSIFY, asked(reference="ham"), ["spam", "ham"]) == [0, 0]


def test_a_scorer_needs_a_task() -> None:
    check_choice(SCORER, CLASSIFY)
    check_choice(make_teacher(URL, choose="majority"), None)
    with pytest.raises(UsageError, match="give --kind, or choose first or majority"):
        check_choice(SCORER, None)


@pytest.mark.parametrize(
    ("samples", "best"),
    [
        ([sample(0), sample(1)], 0),
        ([sample(1), sample(0)], 0),
        ([sample(0, 1.0), sample(1, 2.0), sample(2, 2.0)], 1),
        ([sample(0, quarantine="empty"), sample(1)], 1),
        ([sample(1, quarantine="empty"), sample(0, quarantine="empty")], 0),
    ],
)
def test_the_best_sample_counts_and_a_bad_one_only_where_there_is_no_other(
    samples: list[Completion], best: int
) -> None:
    assert best_samples([*samples, sample(7, prompt_id="other")])["p"].sample_index == best
