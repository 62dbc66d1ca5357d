import pytest

from potstill.errors import DataError
from potstill.evaluation.metrics import ArmMetrics, Evaluation, ScoreLine, evaluate_arms
from potstill.recipe import Task
from potstill.records import Completion, Prompt, Usage, read_jsonl, write_jsonl
from potstill.statistics import mean_interval, wilson_interval

COLOURS = Task(kind="classification", labels=("red", "blue"))
EXTRACTION = Task(kind="extraction")


def prompt(number, reference=None, content=None):
    return Prompt(
        prompt_id=f"p{number}",
        messages=[
            {"role": "system", "content": "Say it."},
            {"role": "user", "content": content or f"question {number}"},
        ],
        task_kind="classification",
        workload="",
        group_id=f"g{number}",
        split="test",
        source=f"log:{number}",
        reference=reference,
    )


def answers(texts, **others):
    """Completions by prompt id; `others` override fields for all."""
    return {
        f"p{number}": Completion(
            prompt_id=f"p{number}",
            teacher="m",
            completion=text,
            message={"role": "assistant", "content": text},
            usage=Usage(),
            **{"finish_reason": "stop"} | others,
        )
        for number, text in enumerate(texts)
    }


def of(evaluation: Evaluation, arm: str) -> ArmMetrics:
    return next(metrics for metrics in evaluation.report.arms if metrics.arm == arm)


def test_accuracy_with_wilsons_interval():
    prompts = [prompt(number, "red") for number in range(10)]
    evaluation = evaluate_arms(COLOURS, prompts, {"candidate": answers(["Red."] * 8 + ["blue", "green"])})
    low, high = wilson_interval(8, 10)
    assert of(evaluation, "candidate") == ArmMetrics(
        arm="candidate",
        metric="accuracy",
        score=0.8,
        low=low,
        high=high,
        n=10,
        unscored=0,
        truncated=0,
        errors=0,
        answered_by="m",
    )
    assert evaluation.report.target == "reference"
    assert evaluation.report.num_prompts == 10


def test_field_f1_with_the_t_interval_and_the_share_of_exact_answers():
    prompts = [prompt(number, '{"a": 1, "b": 2}') for number in range(3)]
    texts = ['{"a": 1, "b": 2}', '{"a": 1, "b": 3}', "half {"]
    evaluation = evaluate_arms(EXTRACTION, prompts, {"candidate": answers(texts)})
    metrics = of(evaluation, "candidate")
    assert (metrics.metric, metrics.score, metrics.exact) == ("field_f1", 0.5, pytest.approx(1 / 3))
    assert (metrics.low, metrics.high) == mean_interval([1.0, 0.5, 0.0])


def test_perfect_field_scores_do_not_get_an_interval_without_width():
    prompts = [prompt(number, '{"a": 1}') for number in range(20)]
    metrics = of(evaluate_arms(EXTRACTION, prompts, {"candidate": answers(['{"a": 1}'] * 20)}), "candidate")
    assert metrics.score == metrics.exact == 1
    assert metrics.low == pytest.approx(0.8389, abs=5e-5)


def test_without_references_answers_are_compared_with_the_teachers():
    arms = {"teacher": answers(["red", "blue"]), "candidate": answers(["red", "red"])}
    evaluation = evaluate_arms(COLOURS, [prompt(0), prompt(1)], arms)
    assert evaluation.report.target == "teacher"
    assert (of(evaluation, "teacher").score, of(evaluation, "candidate").score) == (1.0, 0.5)


def test_a_reference_outweighs_the_teacher_and_both_together_are_mixed():
    arms = {"teacher": answers(["blue", "blue"]), "candidate": answers(["red", "blue"])}
    evaluation = evaluate_arms(COLOURS, [prompt(0, "red"), prompt(1)], arms)
    assert evaluation.report.target == "mixed"
    assert (of(evaluation, "teacher").score, of(evaluation, "candidate").score) == (0.5, 1.0)


def test_a_prompt_with_nothing_to_compare_with_is_unscored_for_every_arm():
    arms = {"teacher": answers(["red"], quarantine="refusal"), "candidate": answers(["red"])}
    evaluation = evaluate_arms(COLOURS, [prompt(0)], arms)
    assert [(line.arm, line.score) for line in evaluation.lines] == [("teacher", None), ("candidate", None)]
    assert all(line.reason == "no reference, and no usable answer of the teacher" for line in evaluation.lines)
    assert of(evaluation, "candidate").unscored == 1
    assert of(evaluation, "candidate").score is None


def test_a_reference_that_cannot_be_read_is_unscored_with_its_reason():
    evaluation = evaluate_arms(COLOURS, [prompt(0, "green")], {"candidate": answers(["red"])})
    assert evaluation.lines == [
        ScoreLine(prompt_id="p0", arm="candidate", score=None, reason="the target is not a label: 'green'")
    ]


@pytest.mark.parametrize("lost", [{}, {"p0": answers(["red"], quarantine="error: 500")["p0"]}])
def test_a_missing_or_failed_answer_is_0_for_a_student_and_unscored_for_the_teacher(lost):
    evaluation = evaluate_arms(COLOURS, [prompt(0, "red")], {"teacher": lost, "candidate": lost, "base": lost})
    assert {line.arm: line.score for line in evaluation.lines} == {"teacher": None, "candidate": 0.0, "base": 0.0}
    assert all(metrics.errors == 1 for metrics in evaluation.report.arms)
    assert (of(evaluation, "teacher").n, of(evaluation, "candidate").n) == (0, 1)


def test_quarantine_for_another_reason_is_scored_as_it_is():
    evaluation = evaluate_arms(COLOURS, [prompt(0, "red")], {"candidate": answers(["red"], quarantine="truncated")})
    assert (of(evaluation, "candidate").score, of(evaluation, "candidate").errors) == (1.0, 0)


def test_truncated_answers_are_counted_and_scored_as_they_are():
    arms = {"candidate": answers(["red", "bl"], finish_reason="length")}
    metrics = of(evaluate_arms(COLOURS, [prompt(0, "red"), prompt(1, "blue")], arms), "candidate")
    assert (metrics.truncated, metrics.n, metrics.score) == (2, 2, 0.5)


def test_completions_of_other_prompts_are_ignored():
    evaluation = evaluate_arms(COLOURS, [prompt(0, "red")], {"candidate": answers(["red", "blue", "blue"])})
    assert (of(evaluation, "candidate").n, len(evaluation.lines)) == (1, 1)


def test_disagreements_show_the_worst_twenty_with_both_answers():
    target = '{"a": 1, "b": 2}'
    prompts = [prompt(number, target, "x" * 1000) for number in range(30)]
    texts = ['{"a": 1, "b": 3}'] * 29 + ["nothing " * 1000]
    found = evaluate_arms(
        EXTRACTION, prompts, {"teacher": answers([target] * 30), "candidate": answers(texts)}
    ).report.disagreements
    assert len(found) == 20
    assert [row.prompt_id for row in found[:2]] == ["p29", "p0"]
    assert (found[1].target, found[1].teacher, found[1].candidate) == (target, target, texts[0])
    assert found[1].prompt == "x" * 400
    assert len(found[0].candidate or "") == 2000


def test_the_excerpt_is_the_text_of_the_last_user_message():
    content = [{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "text", "text": "what colour?"}]
    with_parts = prompt(0, "red").model_copy(
        update={"messages": [{"role": "user", "content": "hello"}, {"role": "user", "content": content}]}
    )
    without_user = prompt(1, "red").model_copy(update={"messages": [{"role": "system", "content": "x"}]})
    found = evaluate_arms(
        COLOURS, [with_parts, without_user], {"candidate": answers(["blue", "blue"])}
    ).report.disagreements
    assert [row.prompt for row in found] == ["what colour?", ""]


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(DataError, match="no prompts"):
        evaluate_arms(COLOURS, [], {"candidate": {}})
    with pytest.raises(DataError, match="no arms"):
        evaluate_arms(COLOURS, [prompt(0, "red")], {})


def test_score_lines_survive_the_disk(tmp_path):
    lines = evaluate_arms(COLOURS, [prompt(0, "red")], {"candidate": answers(["🐼"])}).lines
    write_jsonl(tmp_path / "scores.jsonl", lines)
    assert list(read_jsonl(tmp_path / "scores.jsonl", ScoreLine)) == lines
