"""What is usual in a workload, seen over a whole log: its answers' form, and the system prompt that it has now.

Only counts come of it: a prompt is as good under an older system prompt, and a logged answer is not trained on.
"""

import re
from collections import Counter, deque
from dataclasses import dataclass, field

import orjson

from potstill.curation.readers import RawPrompt
from potstill.messages import as_text

LONGEST_ANSWER = 200
"""Characters; a longer one is no label, nor a label with words around it."""
MOST_ANSWERS = 10_000
"""Different ones; a workload with more has no closed set of them."""
MOST_VERSIONS = 20
"""Of a system prompt; a workload with more has a template that is filled in, of which nothing is said."""
NOW = 50
"""Requests whose commonest system prompt is the present one."""
ENOUGH = 20
"""Answers before anything is called usual."""
USUAL = 0.8
ALIKE = 0.5
"""Share of words in common from which two system prompts are versions of one."""
_NUMBER = re.compile(r"\d+")


@dataclass
class _Workload:
    answers: Counter[str] = field(default_factory=Counter)
    num_answers: int = 0
    num_json: int = 0
    versions: Counter[str] = field(default_factory=Counter)
    latest: deque[str] = field(default_factory=lambda: deque(maxlen=NOW))


class Habits:
    """Look at every prompt of a log in its order with `observe`, then ask for `flags`."""

    def __init__(self) -> None:
        self._workloads: dict[str, _Workload] = {}

    def observe(self, prompt: RawPrompt) -> None:
        """Take one prompt in, as it stands in the log."""
        seen = self._workloads.setdefault(prompt.workload, _Workload())
        if prompt.answer is not None:
            _observe_answer(seen, prompt.answer.strip())
        first = prompt.messages[0]
        if first["role"] in {"system", "developer"} and len(seen.versions) <= MOST_VERSIONS:
            version = _NUMBER.sub("0", as_text(first)["content"])
            seen.versions[version] += 1
            seen.latest.append(version)

    def flags(self) -> Counter[str]:
        """How many lines have an answer out of the usual form, or an older version of the system prompt."""
        found = Counter[str]()
        for seen in self._workloads.values():
            found["format_break"] += _count_breaks(seen)
            found["older_prompt_version"] += _count_older(seen)
        return +found


def _observe_answer(seen: _Workload, answer: str) -> None:
    seen.num_answers += 1
    seen.num_json += _is_json(answer)
    if len(answer) <= LONGEST_ANSWER and len(seen.answers) <= MOST_ANSWERS:
        seen.answers[answer] += 1


def _is_json(answer: str) -> bool:
    if answer[:1] not in {"{", "["}:
        return False
    try:
        orjson.loads(answer)
    except orjson.JSONDecodeError:
        return False
    return True


def _count_breaks(seen: _Workload) -> int:
    """Answers that are no JSON where nearly all are, or a label with words around it where nearly all are labels alone."""
    if seen.num_answers < ENOUGH:
        return 0
    if seen.num_json >= USUAL * seen.num_answers:
        return seen.num_answers - seen.num_json
    if len(seen.answers) > MOST_ANSWERS:
        return 0
    least = max(2, 0.005 * seen.num_answers)
    labels = {answer: count for answer, count in seen.answers.items() if answer and count >= least}
    wrapped = {answer: count for answer, count in seen.answers.items() if _wraps_label(answer, count, labels)}
    if sum(count for label, count in labels.items() if label not in wrapped) < USUAL * seen.num_answers:
        return 0
    return sum(wrapped.values())


def _wraps_label(answer: str, count: int, labels: dict[str, int]) -> bool:
    """Whether it holds a label that is given alone far more often."""
    return any(
        label != answer and commonly >= 3 * count and re.search(rf"(?<![\w.-]){re.escape(label)}(?![\w-]|\.\w)", answer)
        for label, commonly in labels.items()
        if label in answer
    )


def _count_older(seen: _Workload) -> int:
    if not 1 < len(seen.versions) <= MOST_VERSIONS:
        return 0
    [(now, _)] = Counter(seen.latest).most_common(1)
    words = set(now.split())
    return sum(count for version, count in seen.versions.items() if version != now and _alike(words, version))


def _alike(words: set[str], version: str) -> bool:
    others = set(version.split())
    return len(words & others) >= ALIKE * len(words | others)
