"""What a sample says of the rest: populations whose whole cost is known, so that an estimate can be held against it."""

import math
import random
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

import pytest

from potstill.llm.pricing import Rates, Tier
from potstill.records import Usage
from potstill.statistics import t_quantile
from potstill.teacher.estimate import (
    Figure,
    Missing,
    SampledPrompt,
    bound_usd,
    estimate_cost,
    estimate_tokens,
    estimate_usd,
)

RATES = Rates(Decimal("2.5"), Decimal("1.25"), Decimal(10), "given")
POPULATIONS, PROMPTS, SMOKE = 400, 300, 16
Length = Callable[[random.Random], float]


def labels(rng: random.Random) -> float:
    return rng.choice((1, 2, 3))


def even(rng: random.Random) -> float:
    return rng.gauss(200, 40)


def skewed(rng: random.Random) -> float:
    return rng.lognormvariate(5, 0.5)


def very_skewed(rng: random.Random) -> float:
    return rng.lognormvariate(5, 0.8)


def prompt(num_bytes: int = 400, tokens_in: int = 100, tokens_out: int = 50, **fields: int) -> SampledPrompt:
    usage = Usage(input=tokens_in, output=tokens_out, reasoning=fields.pop("reasoning", 0))
    return SampledPrompt(num_bytes, fields.pop("answers", 1), (usage,), 1, **fields)


class Drawn(NamedTuple):
    """What is estimated of a population, and what it is in truth."""

    figure: Figure
    truth: float


def drawn(rng: random.Random, length: Length) -> Drawn:
    """Of prompts of skewed lengths, about four bytes a token, some are asked; the cost of the others is the question."""
    sizes = [300 + int(rng.lognormvariate(6.5, 0.6)) for _ in range(PROMPTS)]
    prompts = [(size, int(size / 4 * rng.gauss(1, 0.05)) + 8, max(1, int(length(rng)))) for size in sizes]
    num_bytes, tokens_in, tokens_out = map(sum, zip(*prompts[SMOKE:], strict=True))
    sampled = [prompt(*one) for one in prompts[:SMOKE]]
    figure = estimate_usd(sampled, Missing(PROMPTS - SMOKE, num_bytes), RATES)
    assert figure is not None
    return Drawn(figure, float(RATES.cost(Usage(input=tokens_in, output=tokens_out))))


def coverage(length: Length) -> tuple[float, float]:
    """How often the rest's cost lies in its interval, and how often below the upper end."""
    rng = random.Random(20261124)
    within = below = 0
    for _ in range(POPULATIONS):
        figure, truth = drawn(rng, length)
        assert figure.low is not None
        assert figure.high is not None
        within += figure.low <= truth <= figure.high
        below += truth <= figure.high
    return within / POPULATIONS, below / POPULATIONS


@pytest.mark.parametrize("length", [labels, even, skewed])
def test_the_interval_holds_the_truth_in_about_95_of_100_populations(length: Length) -> None:
    within, below = coverage(length)
    assert 0.92 <= within <= 0.98
    assert below >= 0.935


def test_very_long_tails_cost_a_few_of_them() -> None:
    within, below = coverage(very_skewed)
    assert within >= 0.90
    assert below >= 0.91


def test_the_estimate_has_no_bias() -> None:
    rng = random.Random(7)
    ratios = []
    for _ in range(POPULATIONS):
        figure, truth = drawn(rng, skewed)
        ratios.append(figure.expected / truth)
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.02)


def test_tokens_of_input_go_with_the_bytes_which_are_known_exactly() -> None:
    sampled = [prompt(400, 100), prompt(4000, 1000), prompt(800, 200)]
    tokens = estimate_tokens(sampled, Missing(10, 80_000))
    assert tokens is not None
    assert tokens.input == pytest.approx((20_000, 20_000, 20_000))


def test_output_is_a_mean_whose_interval_is_the_textbook_s_with_its_finite_population_correction() -> None:
    lengths, total = (40, 50, 60, 46), 20
    tokens = estimate_tokens([prompt(tokens_out=length) for length in lengths], Missing(total - 4, 6400))
    assert tokens is not None
    mean = sum(lengths) / 4
    variance = sum((length - mean) ** 2 for length in lengths) / 3
    half = t_quantile(0.975, 3) * total * math.sqrt((1 - 4 / total) * variance / 4)
    assert (tokens.output.expected, tokens.output.low) == pytest.approx((mean * 16, mean * 16 - half))
    assert tokens.output.high is not None
    assert tokens.output.high >= mean * 16 + half


def test_a_long_tail_moves_the_upper_end_up_and_never_down() -> None:
    def over(lengths: tuple[int, ...]) -> float:
        tokens = estimate_tokens([prompt(tokens_out=length) for length in lengths], Missing(1000, 400_000))
        assert tokens is not None
        _, low, high = tokens.output
        assert low is not None
        assert high is not None
        return (high - tokens.output.expected) / (tokens.output.expected - low)

    assert over((10, 12, 11, 9, 10, 30)) > 1.5
    assert over((30, 28, 29, 31, 30, 20)) == pytest.approx(1)


def test_where_nothing_is_missing_nothing_will_be_paid() -> None:
    cost = estimate_cost([prompt(), prompt(tokens_out=90)], Missing(0, 0), RATES, 100)
    assert list(cost.model_dump().values()) == [0, 0, 0, 0]


def test_one_prompt_gives_a_figure_without_an_interval_and_none_only_the_bound() -> None:
    one = estimate_cost([prompt()], Missing(10, 4000), RATES, 100)
    assert one.expected_usd == Decimal("0.0075")
    assert (one.low_usd, one.high_usd) == (None, None)
    none = estimate_cost([], Missing(10, 4000), RATES, 100)
    assert none.expected_usd is None
    assert none.bound_usd == one.bound_usd == Decimal("0.02")


def test_the_bound_is_the_sum_of_the_bounds_of_all_requests_and_their_fees() -> None:
    rates = RATES._replace(request=Decimal("0.001"))
    sizes = (100, 250, 4000)
    assert bound_usd(Missing(3, sum(sizes)), rates, 64) == sum(rates.upper_bound(size, 64) for size in sizes)


def test_the_bound_holds_whichever_tiers_the_requests_reach() -> None:
    long = Tier(*(Decimal(price) for price in (5, 5, 5, 9)), request=Decimal("0.002"), from_input=1000)
    rates = RATES._replace(tiers=(long,))
    for sizes in ((100, 250), (100, 4000), (600, 600)):
        assert bound_usd(Missing(2, sum(sizes)), rates, 64) >= sum(rates.upper_bound(size, 64) for size in sizes)


def test_a_fee_for_each_request_goes_with_the_answers_and_not_with_their_length() -> None:
    rates = RATES._replace(request=Decimal("0.001"))
    plain = estimate_cost([prompt(), prompt()], Missing(10, 1_000_000), RATES, 100)
    dear = estimate_cost([prompt(), prompt()], Missing(10, 1_000_000), rates, 100)
    assert plain.expected_usd is not None
    assert dear.expected_usd == plain.expected_usd + Decimal("0.01")


def test_half_the_price_is_half_the_cost_however_the_smoke_was_paid() -> None:
    half = RATES._replace(input=RATES.input / 2, cached_input=RATES.cached_input / 2, output=RATES.output / 2)
    sampled = [prompt(), prompt(800, 190, 70)]
    online, batch = (estimate_usd(sampled, Missing(50, 30_000), rates) for rates in (RATES, half))
    assert online is not None
    assert batch == pytest.approx([usd / 2 for usd in online if usd is not None])


def test_attempts_without_an_answer_count_and_one_that_nobody_knows_counts_as_a_mean_one() -> None:
    clean = [prompt(), prompt(), prompt(), prompt()]
    lost = clean[0]._replace(usages=(*clean[0].usages, *clean[0].usages), billed=2)
    unknown = clean[0]._replace(unknown=1)
    missing = Missing(100, 40_000)
    plain, with_lost, with_unknown = (
        estimate_usd([*clean[1:], one], missing, RATES) for one in (clean[0], lost, unknown)
    )
    assert plain is not None
    assert with_lost is not None
    assert with_lost.expected == pytest.approx(plain.expected * 5 / 4)
    assert with_lost == pytest.approx(with_unknown)


def test_several_samples_of_a_prompt_are_one_unit() -> None:
    """Answers to one prompt are alike: four of them tell less than one each of four prompts."""
    quadruples = [prompt(1600, 400, 4 * length, answers=4) for length in (40, 50, 60, 46)]
    together = estimate_tokens(quadruples, Missing(4000, 1_600_000))
    assert together is not None
    assert together.output.expected == pytest.approx(49 * 4000)
    singles = estimate_tokens([prompt(tokens_out=length) for length in (40, 50, 60, 46) * 4], Missing(4000, 1_600_000))
    assert singles is not None
    assert together.output.low is not None
    assert singles.output.low is not None
    assert together.output.low < singles.output.low


def test_reasoning_is_part_of_the_output() -> None:
    tokens = estimate_tokens([prompt(tokens_out=80, reasoning=60), prompt(tokens_out=120, reasoning=90)], Missing(1, 1))
    assert tokens is not None
    assert tokens.output.expected == pytest.approx(100)
    assert tokens.reasoning_share == pytest.approx(0.75)
