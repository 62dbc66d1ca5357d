import math

import pytest

from potstill.errors import DataError
from potstill.evaluation.metrics import ScoreLine
from potstill.gate import decide, read_score_lines
from potstill.recipe import Gate
from potstill.statistics import BinaryPairs, difference_bounds, retention_bounds, summarise_pairs

FLOOR_95 = Gate()


def scores(**arms):
    """Lines from each arm's scores, prompt by prompt."""
    return [
        ScoreLine(prompt_id=f"p{number}", arm=arm, score=value)
        for arm, values in arms.items()
        for number, value in enumerate(values)
    ]


def counted(both=0, student_only=0, teacher_only=0, neither=0):
    """Lines of teacher and candidate with these counts."""
    candidate = [1.0] * (both + student_only) + [0.0] * (teacher_only + neither)
    teacher = [1.0] * both + [0.0] * student_only + [1.0] * teacher_only + [0.0] * neither
    return scores(teacher=teacher, candidate=candidate)


class TestRetention:
    def test_passes_by_the_lower_bound(self):
        decision = decide(counted(both=470, student_only=8, teacher_only=10, neither=12), FLOOR_95)
        expected = retention_bounds(BinaryPairs(470, 8, 10, 12), 0.05)
        assert (decision.verdict, decision.exit_code) == ("passed", 0)
        assert (decision.retention, decision.lower, decision.upper) == expected
        assert (decision.n, decision.floor, decision.alpha) == (500, 0.95, 0.05)
        assert decision.more_prompts_needed is None
        assert decision.checks[0].bound == decision.lower

    def test_rejects_by_the_upper_bound(self):
        decision = decide(counted(both=400, teacher_only=80, neither=20), FLOOR_95)
        assert (decision.verdict, decision.exit_code) == ("rejected", 3)
        assert decision.checks[0].bound == decision.upper
        assert decision.upper is not None
        assert decision.upper < 0.95
        assert decision.reasons == (decision.checks[0].detail,)

    def test_a_good_point_estimate_alone_is_undecided_and_says_how_many_prompts_are_missing(self):
        decision = decide(counted(both=188, student_only=2, teacher_only=9, neither=1), FLOOR_95)
        assert (decision.verdict, decision.exit_code) == ("undecided", 4)
        assert decision.retention is not None
        assert decision.retention > 0.95
        more = decision.more_prompts_needed
        assert more is not None
        assert f"{more} more prompts would decide" in decision.reasons[0]
        rates = BinaryPairs(188, 2, 9, 1)
        assert retention_bounds(rates.scaled(200 + more), 0.05).lower >= 0.95
        assert retention_bounds(rates.scaled(200 + more - 1), 0.05).lower < 0.95

    def test_exactly_at_the_floor_no_number_of_prompts_decides(self):
        decision = decide(counted(both=95, teacher_only=5), FLOOR_95)
        assert decision.verdict == "undecided"
        assert decision.more_prompts_needed is None
        assert "no number of prompts" in decision.reasons[0]

    def test_graded_scores_use_the_graded_test(self):
        teacher = [0.9, 0.8, 1.0, 0.7] * 100
        candidate = [0.9, 0.8, 1.0, 0.69] * 100
        decision = decide(scores(teacher=teacher, candidate=candidate), FLOOR_95)
        expected = retention_bounds(summarise_pairs(list(zip(candidate, teacher, strict=True))), 0.05)
        assert decision.verdict == "passed"
        assert (decision.retention, decision.lower, decision.upper) == expected

    def test_a_teacher_that_scores_nothing_leaves_it_undecided(self):
        decision = decide(counted(student_only=40, neither=60), FLOOR_95)
        assert (decision.verdict, decision.retention, decision.lower, decision.upper) == ("undecided", None, None, None)
        assert decision.more_prompts_needed is None
        assert "undefined" in decision.reasons[0]

    def test_a_student_that_is_always_wrong_is_rejected(self):
        decision = decide(counted(teacher_only=90, neither=10), FLOOR_95)
        assert (decision.verdict, decision.retention, decision.lower) == ("rejected", 0.0, 0.0)

    def test_alpha_is_honoured(self):
        lines = counted(both=280, student_only=2, teacher_only=6, neither=12)
        lax, strict = (decide(lines, Gate(alpha=alpha)) for alpha in (0.2, 0.001))
        assert (lax.verdict, strict.verdict) == ("passed", "undecided")
        assert "99.9 % confidence" in strict.reasons[0]


class TestTooFewPrompts:
    @pytest.mark.parametrize("both", [5, 49])
    def test_nothing_is_decided(self, both):
        for lines in (counted(both=both), counted(teacher_only=both)):
            decision = decide(lines, Gate(retention_floor=0.5))
            assert decision.verdict == "undecided"
            assert decision.more_prompts_needed == 50 - both
            assert f"n too small: nothing is decided below 50 prompts, get {50 - both} more" in decision.reasons[0]

    def test_more_than_the_minimum_is_asked_for_where_the_rates_call_for_it(self):
        # all right: 52 prompts put the lower bound above 0.95
        assert decide(counted(both=5), FLOOR_95).more_prompts_needed == 47

    def test_the_minimum_itself_is_enough(self):
        assert decide(counted(both=50), Gate(retention_floor=0.9)).verdict == "passed"

    def test_no_prompt_in_common(self):
        lines = [*scores(teacher=[None, 1.0]), *scores(candidate=[1.0])]
        decision = decide(lines, FLOOR_95)
        assert (decision.verdict, decision.n, decision.more_prompts_needed) == ("undecided", 0, 50)


class TestChampion:
    TEACHER = [1.0] * 400

    def test_an_equal_candidate_passes_both_checks(self):
        values = [1.0] * 395 + [0.0] * 5
        decision = decide(scores(teacher=self.TEACHER, candidate=values, champion=values), FLOOR_95)
        assert [(check.name, check.verdict) for check in decision.checks] == [
            ("retention", "passed"),
            ("champion", "passed"),
        ]
        expected = difference_bounds(BinaryPairs(395, 0, 0, 5), 0.05)
        assert (decision.checks[1].figure, decision.checks[1].bound) == expected[:2]
        assert decision.checks[1].threshold == -0.03

    def test_a_worse_candidate_is_rejected_by_the_champion_alone(self):
        candidate, champion = [1.0] * 340 + [0.0] * 60, [1.0] * 390 + [0.0] * 10
        decision = decide(
            scores(teacher=self.TEACHER, candidate=candidate, champion=champion), Gate(retention_floor=0.8)
        )
        assert [check.verdict for check in decision.checks] == ["passed", "rejected"]
        assert decision.verdict == "rejected"
        assert decision.reasons == (decision.checks[1].detail,)
        assert "champion by -12.5 points" in decision.reasons[0]

    def test_one_undecided_check_leaves_it_undecided_with_the_prompts_that_one_needs(self):
        candidate = [1.0] * 380 + [0.0] * 20
        champion = [0.0] * 14 + [1.0] * 386
        decision = decide(
            scores(teacher=self.TEACHER, candidate=candidate, champion=champion), Gate(retention_floor=0.8)
        )
        assert [check.verdict for check in decision.checks] == ["passed", "undecided"]
        assert decision.verdict == "undecided"
        assert decision.more_prompts_needed is not None
        assert decision.more_prompts_needed > 0

    def test_a_champion_with_few_common_prompts_decides_nothing(self):
        decision = decide(scores(teacher=self.TEACHER, candidate=self.TEACHER, champion=[1.0] * 10), FLOOR_95)
        assert [check.verdict for check in decision.checks] == ["passed", "undecided"]
        assert any(
            "390 of 400 prompts were left out of the comparison with the champion" in r for r in decision.reasons
        )

    def test_a_champion_without_any_score_decides_nothing(self):
        decision = decide(scores(teacher=self.TEACHER, candidate=self.TEACHER, champion=[None] * 400), FLOOR_95)
        assert (decision.verdict, decision.checks[1].figure, decision.more_prompts_needed) == ("undecided", None, 50)

    def test_other_arms_do_not_count(self):
        decision = decide([*counted(both=200), *scores(base=[0.0] * 200)], FLOOR_95)
        assert (decision.verdict, len(decision.checks)) == ("passed", 1)


class TestLosses:
    def test_more_than_one_percent_left_out_is_said(self):
        candidate = [1.0] * 190 + [None] * 10
        decision = decide(scores(teacher=[1.0] * 197 + [None] * 3, candidate=candidate), FLOOR_95)
        assert decision.n == 190
        assert decision.reasons[-1] == (
            "10 of 200 prompts were left out of the comparison with the teacher: "
            "10 without a score of the candidate, 3 without a score of the teacher"
        )

    def test_a_candidate_without_scores_does_not_pass_by_those_that_it_has(self):
        lines = scores(teacher=[1.0] * 200, candidate=[1.0] * 70 + [None] * 130)
        decision = decide(lines, Gate(retention_floor=0.8))
        assert (decision.verdict, decision.n) == ("undecided", 70)
        assert "130 of 200 prompts have no score of the candidate" in decision.reasons[0]
        assert decision.more_prompts_needed is None

    def test_it_passes_where_it_would_even_if_it_had_failed_on_the_others(self):
        lines = scores(teacher=[1.0] * 200, candidate=[1.0] * 190 + [None] * 10)
        assert decide(lines, Gate(retention_floor=0.8)).verdict == "passed"

    def test_prompts_without_a_score_of_the_teacher_are_not_held_against_the_candidate(self):
        lines = scores(teacher=[1.0] * 150 + [None] * 50, candidate=[1.0] * 200)
        assert decide(lines, FLOOR_95).verdict == "passed"

    def test_one_percent_is_not(self):
        decision = decide(scores(teacher=[1.0] * 200, candidate=[1.0] * 198 + [None] * 2), FLOOR_95)
        assert decision.reasons == (decision.checks[0].detail,)


class TestRefusals:
    @pytest.mark.parametrize("value", [1.5, -0.1, math.nan, math.inf])
    def test_scores_outside_0_to_1(self, value):
        lines = [*counted(both=60), ScoreLine(prompt_id="odd", arm="candidate", score=value)]
        with pytest.raises(DataError, match=rf"'odd' has score {value} for 'candidate'"):
            decide(lines, FLOOR_95)

    def test_a_prompt_scored_twice(self):
        lines = [*counted(both=60), ScoreLine(prompt_id="p7", arm="teacher", score=1)]
        with pytest.raises(DataError, match="'p7' is scored twice for 'teacher'"):
            decide(lines, FLOOR_95)

    @pytest.mark.parametrize(("present", "missing"), [("teacher", "candidate"), ("candidate", "teacher")])
    def test_a_missing_arm(self, present, missing):
        with pytest.raises(DataError, match=f"no scores of the arm '{missing}', only of \\['{present}'\\]"):
            decide(scores(**{present: [1.0] * 60}), FLOOR_95)


class TestSummary:
    def test_it_has_the_keys_that_the_command_promises(self):
        summary = decide(counted(both=100), FLOOR_95).summary()
        assert list(summary) == ["verdict", "retention", "lower", "floor", "n", "checks", "more_prompts_needed"]
        assert summary["checks"][0]["name"] == "retention"
        assert summary["verdict"] == "passed"

    def test_the_same_lines_in_any_order_give_the_same_decision(self):
        lines = counted(both=188, student_only=2, teacher_only=9, neither=1)
        assert decide(lines, FLOOR_95) == decide(reversed(lines), FLOOR_95)


class TestReading:
    def test_lines_without_the_optional_fields_and_blank_ones(self, tmp_path):
        path = tmp_path / "scores.jsonl"
        path.write_text(
            '{"prompt_id": "a", "arm": "teacher", "score": 1}\n\n'
            '{"prompt_id": "a", "arm": "candidate", "score": null, "slice": "short"}\n'
        )
        assert read_score_lines(path) == [
            ScoreLine(prompt_id="a", arm="teacher", score=1),
            ScoreLine(prompt_id="a", arm="candidate", score=None, slice="short"),
        ]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{half", "Invalid JSON"),
            ('{"prompt_id": "a", "arm": "teacher"}', "score: Field required"),
            ('{"prompt_id": "a", "arm": "teacher", "score": "high"}', "score: Input should be a valid number"),
            ('{"prompt_id": "a", "arm": "teacher", "score": 1, "judge": 2}', "judge: Extra inputs"),
            ("[]", "should be an object"),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path, line, message):
        path = tmp_path / "scores.jsonl"
        path.write_text('{"prompt_id": "a", "arm": "teacher", "score": 1}\n' + line + "\n")
        with pytest.raises(DataError, match=f"scores.jsonl:2: .*{message}"):
            read_score_lines(path)

    def test_a_file_that_is_missing_or_empty(self, tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_score_lines(tmp_path / "none.jsonl")
        (tmp_path / "empty.jsonl").write_text("\n")
        with pytest.raises(DataError, match="holds no scores"):
            read_score_lines(tmp_path / "empty.jsonl")
