"""One sample in, one score out, by task kind. Nothing that a student can write raises or counts as right by accident.

A scorer of the user's own is in `potstill.installed_scorers`.
"""

import json
import math
import re
import unicodedata
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from potstill.recipe import Task
from potstill.records import Completion, TaskKind

MetricName = Literal["accuracy", "field_f1", "score"]
"""The last one is what a scorer of the user's own gives."""

MAX_DEPTH = 100
"""Objects and lists inside each other; deeper ones are no answer, whatever the interpreter's own limit is."""

_AROUND_LABEL = " \t\r\n\f\v\u00a0\"'`“”‘’„«»"
_FENCE = re.compile(r"```[\w-]*[ \t]*\r?\n(.*?)```", re.DOTALL)


class Score(NamedTuple):
    value: float | None
    """From 0 to 1; None where the sample cannot be scored."""
    reason: str | None = None
    """Why it is unscored, or why the answer could not be right."""

    @property
    def exact(self) -> bool | None:
        """Whether the answer is right as a whole: F1 is 1 only where every field agrees. None where unscored."""
        return None if self.value is None else self.value == 1


class Scorer(NamedTuple):
    """How answers of one task kind are judged."""

    metric: MetricName
    """What the mean of its scores is called."""
    score: Callable[[Task, str, str], Score]
    """(task, answer, target) → score."""


def score(task: Task, completion: Completion | None, target: str) -> Score:
    """Compare an answer with the target: 1 or 0 for a label, the F1 over leaf fields for an extraction.

    A malformed answer scores 0 with the reason; so does no answer. A target that cannot be read leaves it unscored.
    """
    if completion is None:
        return Score(0.0, "no answer")
    return scorer_of(task).score(task, completion.completion, target)


def scorer_of(task: Task) -> Scorer:
    """Who judges: the installed scorer that the task names, else the kind's own.

    Errors: `UsageError` where the one that is named is not installed, or cannot be loaded.
    """
    if task.scorer is None:
        return SCORERS[task.kind]
    from potstill.installed_scorers import load_scorer

    return load_scorer(task.scorer).scorer


def scorer_identity(task: Task) -> str | None:
    """Name, distribution and version of the installed scorer that judges; None for the kind's own.

    Errors: as `scorer_of`.
    """
    if task.scorer is None:
        return None
    from potstill.installed_scorers import load_scorer

    return load_scorer(task.scorer).identity


def exact_match(task: Task, completion: Completion | None, target: str) -> bool | None:
    """Whether the answer is right as a whole; None where it cannot be scored."""
    return score(task, completion, target).exact


def _score_label(task: Task, answer: str, target: str) -> Score:
    wanted = _find_label(target, task.labels)
    if wanted is None:
        return Score(None, f"the target is not a label: {_shorten(target)}")
    given = _find_label(answer, task.labels)
    if given is None:
        return Score(0.0, f"not a label: {_shorten(answer)}")
    return Score(float(given == wanted))


def _find_label(text: str, labels: tuple[str, ...]) -> str | None:
    """The label that a text names, spelt as it is or else alike for one label only."""
    if (stripped := text.strip()) in labels:
        return stripped
    normal = _normalise(text)
    alike = [label for label in labels if _normalise(label) == normal]
    return alike[0] if normal and len(alike) == 1 else None


def _normalise(text: str) -> str:
    return unicodedata.normalize("NFC", text.lstrip(_AROUND_LABEL).rstrip(_AROUND_LABEL + ".").casefold())


def _score_fields(_task: Task, answer: str, target: str) -> Score:
    try:
        wanted = _leaves(_parse_object(target))
    except _MalformedError as error:
        return Score(None, f"the target is no JSON object: {error}")
    try:
        given = _leaves(_parse_object(answer))
    except _MalformedError as error:
        return Score(0.0, f"no JSON object: {error}")
    agreeing = sum(path in given and given[path] == value for path, value in wanted.items())
    return Score(2 * agreeing / (len(wanted) + len(given)))


class _MalformedError(ValueError):
    """A text that is not one JSON object."""


def _parse_object(text: str) -> dict[str, Any]:
    """The JSON object that a text is, or that its only fenced block holds."""
    stripped = text.strip()
    if "```" in stripped and not stripped.startswith("{"):
        blocks = _FENCE.findall(stripped)
        if len(blocks) != 1:
            raise _MalformedError(f"{len(blocks)} closed fenced blocks")
        stripped = blocks[0].strip()
    if not stripped:
        raise _MalformedError("empty")
    try:
        value = json.loads(
            stripped, object_pairs_hook=_unique_fields, parse_constant=_refuse_number, parse_float=_finite
        )
    except _MalformedError:
        raise
    except json.JSONDecodeError as error:
        what = "more than one value" if error.msg == "Extra data" else error.msg
        raise _MalformedError(f"{what} at character {error.pos} of {_shorten(stripped)}") from None
    except RecursionError:
        raise _MalformedError("nested too deeply") from None
    except ValueError:
        raise _MalformedError("a number of too many digits") from None
    if not isinstance(value, dict):
        raise _MalformedError(f"a {type(value).__name__}, not an object: {_shorten(stripped)}")
    return value


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise _MalformedError(f"a field twice: {_shorten(next(name for name in names if names.count(name) > 1))}")
    return fields


def _refuse_number(text: str) -> float:
    raise _MalformedError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(_shorten(text))


_Leaf = tuple[str, Any]
"""Type and value, so that true is not 1 and "3" is not 3; integers and floats are one type."""


def _leaves(value: dict[str, Any]) -> dict[tuple[str | int, ...], _Leaf]:
    """Every leaf by its path; an empty object or list is a leaf."""
    leaves: dict[tuple[str | int, ...], _Leaf] = {}
    todo: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while todo:
        path, current = todo.pop()
        if len(path) > MAX_DEPTH:
            raise _MalformedError("nested too deeply")
        if isinstance(current, dict) and current:
            todo.extend(((*path, name), part) for name, part in current.items())
        elif isinstance(current, list) and current:
            todo.extend(((*path, index), part) for index, part in enumerate(current))
        else:
            leaves[path] = _leaf(current)
    return leaves


def _leaf(value: Any) -> _Leaf:
    if isinstance(value, str):
        return "string", value.strip()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number", value
    return type(value).__name__, str(value)


def _shorten(text: str, length: int = 60) -> str:
    """One printable line of at most `length` characters."""
    line = " ".join(text[: 4 * length].split()).encode("utf-8", "replace").decode()
    return repr(line if len(line) <= length else line[: length - 1] + "…")


SCORERS: dict[TaskKind, Scorer] = {
    "classification": Scorer("accuracy", _score_label),
    "extraction": Scorer("field_f1", _score_fields),
}
