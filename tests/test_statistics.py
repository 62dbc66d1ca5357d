import math
from statistics import NormalDist

import numpy as np
import pytest

from potstill.statistics import (
    MAX_PAIRS,
    UNDEFINED,
    BinaryPairs,
    GradedPairs,
    difference_bounds,
    difference_t,
    mean_interval,
    paired_t,
    pairs_to_decide,
    retention_bounds,
    summarise_pairs,
    t_quantile,
    tang_score,
    tango_score,
    wilson_interval,
)

ALPHA = 0.05
Z = NormalDist().inv_cdf(1 - ALPHA)

CAVO = BinaryPairs(59, 6, 16, 80)
"""Complete response before and after consolidation therapy (Cavo et al. 2012), the worked example of Fagerland,
Lydersen & Laake, Statistical Analysis of Contingency Tables, chapter 8."""


class TestPublishedValues:
    def test_tang_interval_of_the_ratio(self):
        bounds = retention_bounds(CAVO, 0.025)
        assert bounds == pytest.approx((0.8667, 0.7476, 0.9876), abs=5e-5)

    def test_tango_interval_of_the_difference(self):
        bounds = difference_bounds(CAVO, 0.025)
        assert bounds == pytest.approx((-0.0621, -0.1240, -0.0054), abs=5e-5)

    def test_tango_at_no_difference_is_mcnemar(self):
        assert tango_score(CAVO, 0.0) == pytest.approx(-2.132, abs=5e-4)
        assert tang_score(CAVO, 1.0) == pytest.approx(-2.132, abs=5e-4)

    @pytest.mark.parametrize(
        ("probability", "df", "value"),
        [
            (0.95, 1, 6.313752),
            (0.975, 2, 4.302653),
            (0.95, 5, 2.015048),
            (0.975, 10, 2.228139),
            (0.995, 29, 2.756386),
            (0.95, 30, 1.697261),
            (0.975, 120, 1.979930),
            (0.95, 200, 1.652508),
            (0.95, 201, 1.652470),
            (0.95, 1000, 1.646379),
            (0.05, 5, -2.015048),
        ],
    )
    def test_t_quantiles_of_the_table(self, probability, df, value):
        assert t_quantile(probability, df) == pytest.approx(value, abs=1e-6)

    def test_t_quantiles_join_where_the_method_changes(self):
        below, above = (t_quantile(0.999, df) for df in (200, 201))
        assert 0 < below - above < 2 * (above - t_quantile(0.999, 202))

    def test_wilson_interval(self):
        # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20
        assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
        assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
        assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
        assert wilson_interval(20, 20).high == 1.0

    def test_mean_interval_by_hand(self):
        # mean 0.5, standard deviation 0.2, t(0.975, 2) = 4.3027: half width 0.4968
        assert mean_interval([0.3, 0.5, 0.7]) == pytest.approx((0.0032, 0.9968), abs=5e-5)

    def test_mean_interval_stays_within_scores_and_needs_two(self):
        assert mean_interval([0.0, 0.9]) == (0.0, 1.0)
        assert mean_interval([0.5]) is None


class TestSpecialCases:
    def test_no_discordant_pairs_gives_the_wilson_like_bounds(self):
        for neither in (0, 7):
            bounds = retention_bounds(BinaryPairs(100, 0, 0, neither), ALPHA)
            assert bounds == pytest.approx((1.0, 100 / (100 + Z**2), 1 + Z**2 / 100), abs=1e-8)

    def test_no_discordant_pairs_differ_by_at_most_z_squared(self):
        bounds = difference_bounds(BinaryPairs(60, 0, 0, 40), ALPHA)
        assert bounds == pytest.approx((0.0, -(Z**2) / (100 + Z**2), Z**2 / (100 + Z**2)), abs=1e-8)

    def test_a_student_that_is_always_wrong_keeps_nothing(self):
        bounds = retention_bounds(BinaryPairs(0, 0, 90, 10), ALPHA)
        assert bounds.estimate == bounds.lower == 0
        assert bounds.upper is not None
        assert 0 < bounds.upper < 0.05

    def test_a_teacher_that_is_always_wrong_leaves_retention_undefined(self):
        assert retention_bounds(BinaryPairs(0, 10, 0, 90), ALPHA) == UNDEFINED
        assert retention_bounds(summarise_pairs([(0.5, 0.0), (0.2, 0.0)]), ALPHA) == UNDEFINED

    def test_no_pairs_leave_everything_undefined(self):
        nothing = summarise_pairs([])
        assert retention_bounds(nothing, ALPHA) == difference_bounds(nothing, ALPHA) == UNDEFINED
        assert pairs_to_decide(nothing, 0.9, lambda pairs: retention_bounds(pairs, ALPHA)) is None

    def test_a_student_that_always_wins_differs_by_one(self):
        bounds = difference_bounds(BinaryPairs(0, 10, 0, 0), ALPHA)
        assert (bounds.estimate, bounds.upper) == (1.0, 1.0)
        assert bounds.lower is not None
        assert 0.5 < bounds.lower < 1

    def test_swapping_the_arms_inverts_the_ratio_and_negates_the_difference(self):
        swapped = BinaryPairs(CAVO.both, CAVO.second_only, CAVO.first_only, CAVO.neither)
        there, back = retention_bounds(CAVO, ALPHA), retention_bounds(swapped, ALPHA)
        assert (there.lower, there.upper) == pytest.approx((1 / back.upper, 1 / back.lower), rel=1e-9)
        there, back = difference_bounds(CAVO, ALPHA), difference_bounds(swapped, ALPHA)
        assert (there.lower, there.upper) == pytest.approx((-back.upper, -back.lower), abs=1e-9)

    def test_a_weak_teacher_leaves_the_ratio_unbounded_above(self):
        pairs = summarise_pairs([(0.5, 0.0)] * 30 + [(0.5, 0.01)])
        assert retention_bounds(pairs, ALPHA).upper is None

    def test_identical_graded_answers_do_not_prove_full_retention(self):
        bounds = retention_bounds(summarise_pairs([(0.9, 0.9), (0.4, 0.4)] * 50), ALPHA)
        assert bounds.estimate == pytest.approx(1.0)
        assert bounds.lower is not None
        assert 0.9 < bounds.lower < 0.99

    def test_one_graded_pair_is_enough_not_to_fail(self):
        bounds = retention_bounds(summarise_pairs([(0.5, 0.8)]), ALPHA)
        assert bounds.estimate == pytest.approx(0.625)
        assert bounds.lower == 0


class TestBoundsInvertTheTest:
    TABLES = (
        CAVO,
        BinaryPairs(250, 10, 20, 20),
        BinaryPairs(5, 0, 3, 2),
        BinaryPairs(3, 4, 0, 90),
        BinaryPairs(1, 0, 999, 0),
    )

    @pytest.mark.parametrize("pairs", TABLES)
    def test_tang_rejects_just_inside_and_not_just_outside(self, pairs):
        _, lower, upper = retention_bounds(pairs, ALPHA)
        assert tang_score(pairs, lower - 1e-6) > Z > tang_score(pairs, lower + 1e-6)
        assert tang_score(pairs, upper + 1e-6) < -Z < tang_score(pairs, upper - 1e-6)

    @pytest.mark.parametrize("pairs", TABLES)
    def test_tango_rejects_just_inside_and_not_just_outside(self, pairs):
        _, lower, upper = difference_bounds(pairs, ALPHA)
        assert tango_score(pairs, lower - 1e-6) > Z > tango_score(pairs, lower + 1e-6)
        assert tango_score(pairs, upper + 1e-6) < -Z < tango_score(pairs, upper - 1e-6)

    def test_graded_bounds_are_t_tests_with_one_pair_more(self):
        scores = [(0.9, 1.0), (1.0, 0.95), (0.5, 0.7), (0.8, 0.8), (1.0, 1.0)] * 8
        pairs, quantile = summarise_pairs(scores), t_quantile(0.95, 40)
        lost, won = summarise_pairs([*scores, (0, 1)]), summarise_pairs([*scores, (1, 0)])
        assert isinstance(lost, GradedPairs)
        assert isinstance(won, GradedPairs)
        ratio, difference = retention_bounds(pairs, ALPHA), difference_bounds(pairs, ALPHA)
        assert paired_t(lost, ratio.lower) == pytest.approx(quantile, abs=1e-6)
        assert paired_t(won, ratio.upper) == pytest.approx(-quantile, abs=1e-6)
        assert difference_t(lost, difference.lower) == pytest.approx(quantile, abs=1e-6)
        assert difference_t(won, difference.upper) == pytest.approx(-quantile, abs=1e-6)

    def test_paired_t_by_hand(self):
        # first - 0.5 second: 0.4, 0.2, 0.3 → mean 0.3, sd 0.1, t = 0.3 / (0.1 / √3)
        pairs = summarise_pairs([(0.9, 1.0), (0.5, 0.6), (0.5, 0.4)])
        assert isinstance(pairs, GradedPairs)
        assert paired_t(pairs, 0.5) == pytest.approx(3 * math.sqrt(3))

    def test_adding_a_pair_equals_summarising_it(self):
        scores = [(0.1, 0.4), (0.6, 0.5), (0.9, 1.0)]
        pairs = summarise_pairs(scores[:2])
        assert isinstance(pairs, GradedPairs)
        assert pairs.plus(0.9, 1.0) == pytest.approx(summarise_pairs(scores))

    def test_zeros_and_ones_are_counted_and_anything_else_is_graded(self):
        assert summarise_pairs([(1.0, 1.0), (1, 0), (0, 1), (0, 1), (0, 0)]) == BinaryPairs(1, 1, 2, 1)
        assert isinstance(summarise_pairs([(1.0, 1.0), (0.5, 1.0)]), GradedPairs)


class TestPairsToDecide:
    @staticmethod
    def retention(pairs):
        return retention_bounds(pairs, ALPHA)

    def test_it_is_the_smallest_number_that_passes(self):
        pairs = BinaryPairs(260, 10, 16, 14)
        needed = pairs_to_decide(pairs, 0.95, self.retention)
        assert needed is not None
        assert needed > pairs.n
        assert self.retention(pairs.scaled(needed)).lower >= 0.95
        assert self.retention(pairs.scaled(needed - 1)).lower < 0.95

    def test_it_is_the_smallest_number_that_rejects(self):
        pairs = BinaryPairs(90, 0, 9, 1)
        needed = pairs_to_decide(pairs, 0.95, self.retention)
        assert needed is not None
        assert self.retention(pairs.scaled(needed)).upper < 0.95 <= self.retention(pairs.scaled(needed - 1)).upper

    def test_perfect_agreement_needs_the_closed_form_number(self):
        # n / (n + z²) ≥ 0.95 from n = 19 z² = 51.4 on
        assert pairs_to_decide(BinaryPairs(10, 0, 0, 0), 0.95, self.retention) == math.ceil(19 * Z**2)

    def test_a_decided_sample_could_have_been_smaller(self):
        assert pairs_to_decide(BinaryPairs(500, 0, 0, 0), 0.95, self.retention) == math.ceil(19 * Z**2)

    def test_a_figure_exactly_at_the_threshold_is_never_decided(self):
        assert pairs_to_decide(BinaryPairs(95, 0, 5, 0), 0.95, self.retention) is None

    def test_it_works_for_graded_scores_and_differences(self):
        pairs = summarise_pairs([(0.9, 1.0), (1.0, 0.95), (0.5, 0.7), (0.8, 0.8), (1.0, 1.0)])
        for threshold, bounds in ((0.9, retention_bounds), (-0.08, difference_bounds)):
            needed = pairs_to_decide(pairs, threshold, lambda scaled, of=bounds: of(scaled, ALPHA))
            assert needed is not None
            assert 5 < needed < MAX_PAIRS
            assert bounds(pairs.scaled(needed), ALPHA).lower >= threshold


class TestFalsePassRate:
    """Students that lie exactly at the floor; 1 in 20 may pass. Fixed seeds."""

    NUM_DATASETS = 3000

    @pytest.mark.parametrize("n", [200, 500])
    @pytest.mark.parametrize(("accuracy", "agreement"), [(0.9, 0.9), (0.9, 0.945), (0.7, 0.85), (0.98, 0.945)])
    def test_binary(self, n, accuracy, agreement):
        lost = accuracy * 0.05
        discordant = max(1 - agreement, lost + 0.005)
        cells = [accuracy - (discordant + lost) / 2, (discordant - lost) / 2, (discordant + lost) / 2]
        counts = np.random.default_rng(n).multinomial(n, [*cells, 1 - sum(cells)], size=self.NUM_DATASETS)
        tables, times = np.unique(counts, axis=0, return_counts=True)
        passed = sum(
            int(number)
            for table, number in zip(tables.tolist(), times, strict=True)
            if retention_bounds(BinaryPairs(*table), ALPHA).lower >= 0.95
        )
        assert 0.02 < passed / self.NUM_DATASETS <= 0.06

    @pytest.mark.parametrize("n", [50, 200, 500])
    @pytest.mark.parametrize("malformed", [0.03, 0.05])
    def test_field_scores_with_malformed_answers(self, n, malformed):
        rng = np.random.default_rng(n)
        teacher = rng.binomial(5, 0.98, (self.NUM_DATASETS, n)) / 5
        student = rng.binomial(5, 0.97, (self.NUM_DATASETS, n)) / 5 * (rng.random((self.NUM_DATASETS, n)) >= malformed)
        floor = 0.97 * (1 - malformed) / 0.98
        passed = 0
        for first, second in zip(student, teacher, strict=True):
            pairs = GradedPairs(n, first.mean(), second.mean(), *_moments(first, second))
            passed += paired_t(pairs.plus(0, 1), floor) > t_quantile(1 - ALPHA, n)
        assert passed / self.NUM_DATASETS <= 0.06

    def test_plain_t_would_pass_too_many_and_so_a_pair_is_added(self):
        rng = np.random.default_rng(1)
        student = np.where(rng.random((2000, 100)) < 0.05, 0.0, rng.choice([0.8, 1.0], (2000, 100), p=[0.01, 0.99]))
        floor = 0.95 * 0.998
        plain = 0
        for first in student:
            pairs = GradedPairs(100, first.mean(), 1.0, first.var(ddof=1), 0.0, 0.0)
            plain += paired_t(pairs, floor) > t_quantile(1 - ALPHA, 99)
        assert plain / 2000 > 0.08


def _moments(first, second):
    covariance = np.cov(first, second)
    return covariance[0, 0], covariance[1, 1], covariance[0, 1]
