"""What the answers that a plan still lacks will cost, judged by those of a few prompts. Pure: it reads and asks nothing.

The unit is a prompt with all that its answers took: samples, attempts that could not be used, further samples in place
of bad ones. Tokens of input are predicted in proportion to the bytes of the requests, which are known exactly for every
prompt (the ratio estimator); tokens of output, and what a request costs whatever its length, by their mean. The variance
is that of predicting the prompts outside the sample from those in it (Lohr, Sampling: Design and Analysis, 4.6;
Royall, Biometrika 57, 1970): with the whole rest to predict it is the textbook's with its finite population correction,
and with nothing left it is 0. The interval is Student's t at 95 %; where the sample is skewed to the right, as lengths of
answers are, its upper end is moved up by Hall's transformation (JRSS B 54, 1992), which plain t would set too low.
Measured coverage: docs/estimate.md.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple

from potstill.llm.pricing import Rates
from potstill.records import Row, Usage
from potstill.statistics import t_quantile

CONFIDENCE = 0.95
NOTHING = Usage()


class SampledPrompt(NamedTuple):
    """A prompt whose every answer is known, and what they took."""

    request_bytes: int
    """Of the requests for the wanted answers, each once."""
    answers: int
    """How many are wanted of it."""
    usages: tuple[Usage, ...]
    """Of its billed attempts; those that gave no answer may stand together as one."""
    billed: int
    """How many attempts these are."""
    unknown: int = 0
    """Attempts whose bill nobody knows: each is taken for a mean one."""


class Missing(NamedTuple):
    """What is still to be asked."""

    answers: int
    request_bytes: int
    hidden_tokens: int = 0
    """Of input, at most, that the bytes say nothing of; see `potstill.llm.messages.hidden_tokens`."""

    def plus(self, other: "Missing") -> "Missing":
        """Both together."""
        return Missing(*(mine + its for mine, its in zip(self, other, strict=True)))

    def minus(self, other: "Missing") -> "Missing":
        """Without what was found since."""
        return Missing(*(mine - its for mine, its in zip(self, other, strict=True)))


class Figure(NamedTuple):
    """An expected value and its interval; no interval where fewer than two prompts were sampled."""

    expected: float
    low: float | None
    high: float | None


class Amount(NamedTuple):
    """What one prompt adds to a total: a part that goes with the bytes of its requests, and one that each answer adds."""

    by_bytes: float
    by_answer: float


Measure = Callable[[Usage], Amount]


class Cost(Row):
    """What the missing answers will cost, in USD."""

    expected_usd: Decimal | None
    """None without a sample."""
    low_usd: Decimal | None
    high_usd: Decimal | None
    bound_usd: Decimal
    """What asking once for each cannot exceed."""


class TokenEstimate(NamedTuple):
    """Tokens of the missing answers."""

    input: Figure
    output: Figure
    """With those of reasoning."""
    reasoning_share: float
    """How many of the sampled tokens of output were reasoning."""


def estimate_cost(sampled: Sequence[SampledPrompt], missing: Missing, rates: Rates, max_tokens: int) -> Cost:
    """The cost of the missing answers at these rates."""
    found = estimate_usd(sampled, missing, rates) or (None, None, None)
    expected, low, high = (None if usd is None else Decimal(f"{usd:.9f}") for usd in found)
    return Cost(expected_usd=expected, low_usd=low, high_usd=high, bound_usd=bound_usd(missing, rates, max_tokens))


def estimate_tokens(sampled: Sequence[SampledPrompt], missing: Missing) -> TokenEstimate | None:
    """The tokens of the missing answers; None without a sample."""
    tokens_in = predict(sampled, missing, lambda usage: Amount(usage.input, 0))
    tokens_out = predict(sampled, missing, lambda usage: Amount(0, usage.output))
    if tokens_in is None or tokens_out is None:
        return None
    usages = [usage for prompt in sampled for usage in prompt.usages]
    reasoning = sum(usage.reasoning for usage in usages)
    return TokenEstimate(tokens_in, tokens_out, reasoning / max(1, sum(usage.output for usage in usages)))


def estimate_usd(sampled: Sequence[SampledPrompt], missing: Missing, rates: Rates) -> Figure | None:
    """The cost of the missing answers at these rates, in USD; None without a sample.

    Whatever the sample's tokens were billed at when they came, they count at these rates here.
    """
    fixed = rates.cost(NOTHING)

    def measure(usage: Usage) -> Amount:
        by_bytes = rates.cost(usage.model_copy(update={"output": 0, "reasoning": 0})) - fixed
        return Amount(float(by_bytes), float(rates.cost(usage) - by_bytes))

    return predict(sampled, missing, measure)


def bound_usd(missing: Missing, rates: Rates, max_tokens: int) -> Decimal:
    """What asking once for each missing answer cannot exceed, in USD: the sum of `Rates.upper_bound`.

    Where longer prompts have other prices it may be more: nobody knows the longest, but none is longer than all together.
    """
    if not missing.answers:
        return Decimal(0)
    num_input = missing.request_bytes + missing.hidden_tokens
    dearest = rates.dearest(num_input)
    return dearest.upper_bound(num_input, missing.answers * max_tokens) + dearest.request * (missing.answers - 1)


def predict(sampled: Sequence[SampledPrompt], missing: Missing, measure: Measure) -> Figure | None:
    """The total of what `measure` finds in each attempt, over the missing answers; None without a sample."""
    if not missing.answers:
        return Figure(0.0, 0.0, 0.0)
    n = len(sampled)
    known_bytes = sum(prompt.request_bytes for prompt in sampled)
    known_answers = sum(prompt.answers for prompt in sampled)
    if not known_answers:
        return None
    amounts = _amounts(sampled, measure)
    a_byte = math.fsum(amount.by_bytes for amount in amounts) / known_bytes
    an_answer = math.fsum(amount.by_answer for amount in amounts) / known_answers
    expected = a_byte * missing.request_bytes + an_answer * missing.answers
    if n < 2:
        return Figure(expected, None, None)
    residuals = [
        Amount(amount.by_bytes - a_byte * prompt.request_bytes, amount.by_answer - an_answer * prompt.answers)
        for prompt, amount in zip(sampled, amounts, strict=True)
    ]
    bytes_ratio, answers_ratio = missing.request_bytes / known_bytes, missing.answers / known_answers
    pulls = [by_bytes * bytes_ratio + by_answer * answers_ratio for by_bytes, by_answer in residuals]
    of_means = math.fsum(pull * pull for pull in pulls)
    of_rest = math.fsum((by_bytes + by_answer) ** 2 for by_bytes, by_answer in residuals) * answers_ratio
    error = math.sqrt(n * (of_means + of_rest) / (n - 1))
    t = t_quantile((1 + CONFIDENCE) / 2, n - 1)
    return Figure(expected, max(0.0, expected - t * error), expected + _upper_quantile(pulls, t) * error)


def _upper_quantile(pulls: Sequence[float], t: float) -> float:
    """How many standard errors the upper end lies above: t, or what Hall's transformation makes of it if that is more.

    `pulls` are how far each prompt moves the estimate; their mean is 0.
    """
    n = len(pulls)
    variance = math.fsum(pull * pull for pull in pulls) / n
    if variance <= 0:
        return t
    skewness = math.fsum(pull**3 for pull in pulls) / n / variance**1.5 / math.sqrt(n)
    if skewness <= 0:
        return t
    return max(t, 3 / skewness * (1 - math.cbrt(1 - skewness * (t + skewness / 6))))


def _amounts(sampled: Sequence[SampledPrompt], measure: Measure) -> list[Amount]:
    """By prompt, its billed attempts and a mean one for each that nobody knows the bill of."""
    known = [_sum(measure(usage) for usage in prompt.usages) for prompt in sampled]
    total, billed = _sum(known), max(1, sum(prompt.billed for prompt in sampled))
    return [
        Amount(*(own + prompt.unknown * mean / billed for own, mean in zip(amount, total, strict=True)))
        for prompt, amount in zip(sampled, known, strict=True)
    ]


def _sum(amounts: Iterable[Amount]) -> Amount:
    listed = list(amounts)
    return Amount(math.fsum(amount.by_bytes for amount in listed), math.fsum(amount.by_answer for amount in listed))
