"""Intervals and one-sided paired tests for scores between 0 and 1; the standard library is enough.

A pair is the scores of two arms on one prompt: the first arm is the student, the second what it is held against.
Scores of 0 and 1 only are compared by score tests, whose false-pass rate stays at alpha where the percentile bootstrap
and the delta method reach 0.06–0.09. Graded scores are compared by the paired t test with one pair added to the sample:
for a lower bound one that the first arm loses whole (0 against 1), for an upper bound one that it wins whole. Plain t
trusts a sample in which the rare total failure happens to be rare: with 2–5 % malformed answers it passes 8–10 % of the
students at the floor at n = 200, and up to 20 % at n = 50; with the added pair about 5 %,
and 6.3 % at n = 200 in the worst case found: 5 % malformed and everything else right (simulated; docs/gate.md).
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

MAX_PAIRS = 10_000_000
"""More prompts than this are not worth asking for: `pairs_to_decide` gives up."""

_LARGEST_RATIO = 1e12
_TOLERANCE = 1e-12


class Interval(NamedTuple):
    low: float
    high: float


class Bounds(NamedTuple):
    """A figure and its one-sided confidence bounds, each at level 1 - alpha of its own."""

    estimate: float | None
    """None where the figure is undefined; both bounds are then None too."""
    lower: float | None
    """The largest value that the test of "the truth is at most this" rejects."""
    upper: float | None
    """The smallest value that the test of "the truth is at least this" rejects; None where it rejects none."""


UNDEFINED = Bounds(None, None, None)


class BinaryPairs(NamedTuple):
    """How often two arms were right on the same prompts; fractions of a pair are allowed."""

    both: float
    first_only: float
    second_only: float
    neither: float

    @property
    def n(self) -> float:
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def first_right(self) -> float:
        return self.both + self.first_only

    @property
    def second_right(self) -> float:
        return self.both + self.second_only

    def scaled(self, n: int) -> "BinaryPairs":
        """The same rates on `n` prompts."""
        return BinaryPairs(*(count * n / self.n for count in self))


class GradedPairs(NamedTuple):
    """The moments of two arms' scores on the same prompts; variances divide by n - 1."""

    n: int
    mean_first: float
    mean_second: float
    variance_first: float
    variance_second: float
    covariance: float

    def plus(self, first: float, second: float) -> "GradedPairs":
        """The moments with one pair more (Welford's update)."""
        k = self.n + 1
        off_first, off_second = first - self.mean_first, second - self.mean_second

        def updated(moment: float, product: float) -> float:
            return ((self.n - 1) * moment + product * self.n / k) / self.n

        return GradedPairs(
            n=k,
            mean_first=self.mean_first + off_first / k,
            mean_second=self.mean_second + off_second / k,
            variance_first=updated(self.variance_first, off_first * off_first),
            variance_second=updated(self.variance_second, off_second * off_second),
            covariance=updated(self.covariance, off_first * off_second),
        )

    def scaled(self, n: int) -> "GradedPairs":
        """The same means and variances on `n` prompts."""
        return self._replace(n=n)


Pairs = BinaryPairs | GradedPairs


def summarise_pairs(scores: Sequence[tuple[float, float]]) -> Pairs:
    """Counts where every score is 0 or 1, moments where one is not."""
    if all(score in {0, 1} for pair in scores for score in pair):
        both, first_only, second_only, neither = (
            sum(pair == cell for pair in scores) for cell in ((1, 1), (1, 0), (0, 1), (0, 0))
        )
        return BinaryPairs(both, first_only, second_only, neither)
    n = len(scores)
    mean_first, mean_second = (math.fsum(pair[arm] for pair in scores) / n for arm in (0, 1))
    products = [
        math.fsum((pair[a] - mean_a) * (pair[b] - mean_b) for pair in scores) / max(1, n - 1)
        for a, mean_a, b, mean_b in (
            (0, mean_first, 0, mean_first),
            (1, mean_second, 1, mean_second),
            (0, mean_first, 1, mean_second),
        )
    ]
    return GradedPairs(n, mean_first, mean_second, *products)


def wilson_interval(right: float, n: int, confidence: float = 0.95) -> Interval:
    """The two-sided interval of a proportion `right / n`, n > 0 (Wilson 1927)."""
    z = _z((1 - confidence) / 2)
    rate, spread = right / n, z * z / n
    middle = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (rate * (1 - rate) + spread / 4)) / (1 + spread)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """The two-sided t interval of the mean of scores, cut to 0…1; None for fewer than two scores."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = t_quantile(1 - (1 - confidence) / 2, n - 1) * math.sqrt(variance / n)
    return Interval(max(0.0, mean - half), min(1.0, mean + half))


def retention_bounds(pairs: Pairs, alpha: float) -> Bounds:
    """Bounds of first / second, the share of the second arm's score that the first one keeps.

    Binary: the score test of Tang, Tang & Chan (Statistics in Medicine 22, 2003) inverted. Graded: the paired t test on
    first - ratio * second inverted (Fieller 1954), with one pair added. Undefined where the second arm never scores.
    """
    if isinstance(pairs, BinaryPairs):
        if pairs.second_right == 0:
            return UNDEFINED
        estimate = pairs.first_right / pairs.second_right
        return _invert(_both_sides(lambda ratio: tang_score(pairs, ratio)), _z(alpha), estimate, 0.0, _LARGEST_RATIO)
    if pairs.mean_second == 0:
        return UNDEFINED
    estimate = pairs.mean_first / pairs.mean_second
    return _invert(_with_one_more(pairs, paired_t), _t(alpha, pairs.n), estimate, 0.0, _LARGEST_RATIO)


def difference_bounds(pairs: Pairs, alpha: float) -> Bounds:
    """Bounds of first - second, by which one arm's score exceeds the other's; undefined without pairs.

    Binary: the score test of Tango (Statistics in Medicine 17, 1998) inverted. Graded: the paired t test, with one pair
    added.
    """
    if isinstance(pairs, BinaryPairs):
        if pairs.n == 0:
            return UNDEFINED
        estimate = (pairs.first_only - pairs.second_only) / pairs.n
        return _invert(_both_sides(lambda difference: tango_score(pairs, difference)), _z(alpha), estimate, -1.0, 1.0)
    estimate = pairs.mean_first - pairs.mean_second
    return _invert(_with_one_more(pairs, difference_t), _t(alpha, pairs.n), estimate, -1.0, 1.0)


def pairs_to_decide(pairs: Pairs, threshold: float, bounds: Callable[[Pairs], Bounds]) -> int | None:
    """The smallest number of pairs at which, at the observed rates, a bound falls on one side of `threshold`.

    At that number a decision is about as likely as not: the observed rates are only an estimate. None beyond
    `MAX_PAIRS`, without pairs, and where the figure is undefined.
    """

    def decides(n: int) -> bool:
        _, lower, upper = bounds(pairs.scaled(n))
        return (lower is not None and lower >= threshold) or (upper is not None and upper < threshold)

    if pairs.n == 0:
        return None
    too_few, enough = 0, math.ceil(pairs.n)
    while not decides(enough):
        if enough == MAX_PAIRS:
            return None
        too_few, enough = enough, min(2 * enough, MAX_PAIRS)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if decides(middle) else (middle, enough)
    return enough


def tang_score(pairs: BinaryPairs, ratio: float) -> float:
    """Standard normal where first / second is `ratio`; positive where the data lie above it."""
    right = pairs.both + pairs.first_only + pairs.second_only
    a = pairs.n * (1 + ratio)
    b = pairs.second_right * ratio * ratio - (right + pairs.second_only)
    c = pairs.second_only * (1 - ratio) * right / pairs.n
    second_only_rate = _larger_root(a, b, c)
    variance = a * second_only_rate - right * (1 - ratio)
    return _standardised(pairs.first_right - ratio * pairs.second_right, variance)


def tango_score(pairs: BinaryPairs, difference: float) -> float:
    """Standard normal where first - second is `difference`; positive where the data lie above it."""
    discordant, gain = pairs.first_only + pairs.second_only, pairs.first_only - pairs.second_only
    a = 2 * pairs.n
    b = (2 * pairs.n - gain) * difference - discordant
    c = -pairs.second_only * difference * (1 - difference)
    second_only_rate = _larger_root(a, b, c)
    variance = pairs.n * (2 * second_only_rate + difference * (1 - difference))
    return _standardised(gain - pairs.n * difference, variance)


def paired_t(pairs: GradedPairs, ratio: float) -> float:
    """Student's t of first - ratio * second, n - 1 degrees of freedom."""
    variance = pairs.variance_first - 2 * ratio * pairs.covariance + ratio * ratio * pairs.variance_second
    return _standardised(pairs.mean_first - ratio * pairs.mean_second, variance / pairs.n)


def difference_t(pairs: GradedPairs, difference: float) -> float:
    """Student's t of first - second - difference, n - 1 degrees of freedom."""
    variance = pairs.variance_first - 2 * pairs.covariance + pairs.variance_second
    return _standardised(pairs.mean_first - pairs.mean_second - difference, variance / pairs.n)


@cache
def t_quantile(probability: float, df: int) -> float:
    """The quantile of Student's t with an integer number of degrees of freedom, to 1e-8 or better.

    Up to 200 by inverting the finite sums for the distribution (Abramowitz & Stegun 26.7.3 and 26.7.4), above by the
    expansion around the normal quantile (26.7.5), whose error falls with the fifth power of df.
    """
    if probability < 0.5:
        return -t_quantile(1 - probability, df)
    if df <= 200:
        high = 1.0
        while _t_between(high, df) < 2 * probability - 1:
            high *= 2
        return _frontier(lambda t: _t_between(t, df) >= 2 * probability - 1, high, 0.0)
    z = _z(1 - probability)
    return (
        z
        + (z**3 + z) / (4 * df)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * df**4)
    )


def _t_between(t: float, df: int) -> float:
    """The probability that Student's t lies between -t and t."""
    angle = math.atan(t / math.sqrt(df))
    cosine = math.cos(angle)
    term = cosine if df % 2 else 1.0
    total = 0.0
    for k in range(2 + df % 2, df + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if df % 2 else total


def _t(tail: float, df: int) -> float:
    return t_quantile(1 - tail, df)


@cache
def _z(tail: float) -> float:
    return NormalDist().inv_cdf(1 - tail)


def _standardised(deviation: float, variance: float) -> float:
    if variance > 0:
        return deviation / math.sqrt(variance)
    return math.copysign(math.inf, deviation) if deviation else 0.0


class _Statistics(NamedTuple):
    """What is inverted for each bound; both fall as the supposed value rises."""

    for_lower: Callable[[float], float]
    for_upper: Callable[[float], float]


def _both_sides(statistic: Callable[[float], float]) -> _Statistics:
    return _Statistics(statistic, statistic)


def _with_one_more(pairs: GradedPairs, statistic: Callable[[GradedPairs, float], float]) -> _Statistics:
    lost, won = pairs.plus(0, 1), pairs.plus(1, 0)
    return _Statistics(lambda value: statistic(lost, value), lambda value: statistic(won, value))


def _invert(statistics: _Statistics, quantile: float, estimate: float, smallest: float, largest: float) -> Bounds:
    """The bounds, between `smallest` and `largest`, at which each statistic crosses the quantile."""
    lower, upper = smallest, None
    if estimate > smallest and statistics.for_lower(smallest) > quantile:
        lower = _frontier(lambda value: statistics.for_lower(value) > quantile, smallest, estimate)
    if estimate >= largest:
        upper = largest
    elif statistics.for_upper(largest) < -quantile:
        upper = _frontier(lambda value: statistics.for_upper(value) < -quantile, largest, estimate)
    return Bounds(estimate, lower, upper)


def _frontier(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    """The farthest point from `inside` towards `outside` at which `holds` is still true, by bisection."""
    while abs(outside - inside) > _TOLERANCE:
        middle = (inside + outside) / 2
        if middle in {inside, outside}:
            break
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside


def _larger_root(a: float, b: float, c: float) -> float:
    """Of a x² + b x + c = 0 with a > 0, without the cancellation of the school formula."""
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return (root - b) / (2 * a) if b <= 0 else -2 * c / (b + root)
