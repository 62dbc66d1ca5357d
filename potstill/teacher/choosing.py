"""Which of several usable samples of a prompt is trained on."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import orjson

from potstill.errors import UsageError
from potstill.recipe import Task, Teacher
from potstill.records import Prompt
from potstill.scorers import scorer_of


def check_choice(teacher: Teacher, task: Task | None) -> None:
    """Errors: `UsageError` where a scorer is to choose and no kind of task says which, or it is not installed."""
    if teacher.choose == "scorer" and task is None:
        raise UsageError("choose scorer: no kind of task says which scorer: give --kind, or choose first or majority")
    if teacher.choose == "scorer" and task is not None:
        scorer_of(task)


def choice_scores(teacher: Teacher, task: Task | None, prompt: Prompt, texts: Sequence[str]) -> list[float]:
    """What speaks for each usable answer of a prompt: the higher, the better, and all alike where the first is taken."""
    if teacher.choose == "majority":
        return [float(count) for count in count_agreeing(texts)]
    if teacher.choose == "scorer" and task is not None:
        return _by_scorer(task, prompt, texts)
    return [0.0] * len(texts)


def _by_scorer(task: Task, prompt: Prompt, texts: Sequence[str]) -> list[float]:
    """The task's score against the prompt's reference, or else the mean of those against its other answers.

    The second is minimum Bayes risk (Kumar and Byrne, 2004, "Minimum Bayes-Risk Decoding for Statistical Machine
    Translation"). A reference of the test split is not looked at: the teacher that is measured must not have seen it.
    """
    judge = scorer_of(task).score
    if prompt.reference is not None and prompt.split != "test":
        scores = [judge(task, text, prompt.reference).value for text in texts]
        if None not in scores:
            return [score or 0.0 for score in scores]
    others = ([other for j, other in enumerate(texts) if j != i] for i in range(len(texts)))
    return [
        fmean(judge(task, text, other).value or 0.0 for other in rest) if rest else 0.0
        for text, rest in zip(texts, others, strict=True)
    ]


def count_agreeing(texts: Sequence[str]) -> list[int]:
    """How many of these answers say the same as each: JSON is compared as JSON, text without regard to white space."""
    said = [_meaning(text) for text in texts]
    counts = Counter(said)
    return [counts[meaning] for meaning in said]


def _meaning(text: str) -> bytes:
    parsed = parsed_json(text)
    return " ".join(text.split()).encode() if parsed is None else orjson.dumps(parsed, option=orjson.OPT_SORT_KEYS)


def parsed_json(text: str) -> Any:
    """The value of a JSON text; None where it is none."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
