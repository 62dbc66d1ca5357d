"""What requests turn out to cost, learned from replies."""

from typing import NamedTuple

from potstill.llm.pacing.ticket import Cost
from potstill.llm.providers.base import LimitName
from potstill.records import Usage

MEMORY = 200
"""So many replies weigh in a running mean: a run that moves from short prompts to long ones is followed."""
LARGEST_CORRECTION = 4.0
"""An estimate of the prompt is believed to be within this factor of the truth."""


class Amounts(NamedTuple):
    """What one request is expected to take out of a bucket, and the most that a server may book for it."""

    likely: float
    most: float


class Sizes:
    """Running means of completions, of how far estimates of prompts are off, and of what of prompts no cache held."""

    def __init__(self) -> None:
        self._replies = 0
        self._completion = 0.0
        self._correction = 1.0
        self._uncached_share = 1.0

    def prompt(self, cost: Cost) -> float:
        return cost.prompt_tokens * self._correction

    def completion(self, cost: Cost) -> float:
        """The running mean; until there is one, `max_tokens`."""
        return min(self._completion, cost.max_tokens) if self._replies else cost.max_tokens

    def learn(self, cost: Cost, usage: Usage) -> None:
        self._replies += 1
        weight = 1 / min(self._replies, MEMORY)
        self._completion += weight * (usage.output - self._completion)
        if usage.input > 0:
            self._uncached_share += weight * (1 - usage.cached_input / usage.input - self._uncached_share)
        if cost.prompt_tokens > 0:
            ratio = min(max(usage.input / cost.prompt_tokens, 1 / LARGEST_CORRECTION), LARGEST_CORRECTION)
            self._correction += weight * (ratio - self._correction)

    def amounts(self, cost: Cost) -> dict[LimitName, Amounts]:
        """By the name of a `Limit`. What a cache holds may count nothing as `input_tokens`; in `tokens` it counts."""
        prompt, completion = self.prompt(cost), self.completion(cost)
        return {
            "requests": Amounts(1, 1),
            "tokens": Amounts(prompt + completion, prompt + cost.max_tokens),
            "input_tokens": Amounts(prompt * self._uncached_share, prompt),
            "output_tokens": Amounts(completion, cost.max_tokens),
        }
