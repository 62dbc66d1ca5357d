"""Scorers of the user's own: entry points of group `potstill.scorers` in installed distributions, found by their name.

A recipe names one, and never says where its code is: what runs was installed by whoever runs the machine.
"""

import math
from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any, NamedTuple

from potstill.errors import UsageError
from potstill.recipe import Task
from potstill.scorers import Score, Scorer

GROUP = "potstill.scorers"
LONGEST_REASON = 200


class InstalledScorer(NamedTuple):
    scorer: Scorer
    identity: str
    """Name, distribution and version: part of the key of whatever depends on its scores."""


def installed_names() -> list[str]:
    """The names of every scorer that is installed here."""
    return sorted({point.name for point in metadata.entry_points(group=GROUP)})


@cache
def load_scorer(name: str) -> InstalledScorer:
    """The scorer of this name.

    Errors: `UsageError` where none or more than one is installed, or where it cannot be loaded; it lists those that are.
    """
    found = {_describe(point): point for point in metadata.entry_points(group=GROUP, name=name)}
    if not found:
        known = ", ".join(installed_names()) or "none"
        raise UsageError(
            f"task.scorer {name}: no installed distribution has it in group {GROUP}: install one that has. "
            f"Installed: {known}"
        )
    if len(found) > 1:
        raise UsageError(f"task.scorer {name}: several distributions have it: {'; '.join(sorted(found))}: keep one")
    identity, point = found.popitem()
    try:
        function = point.load()
    except Exception as error:  # noqa: BLE001 - whatever its module raises when it is imported
        raise UsageError(
            f"task.scorer {identity}: cannot be loaded: {type(error).__name__}: {error}: mend it"
        ) from None
    if not callable(function):
        raise UsageError(f"task.scorer {identity}: a {type(function).__name__}, not a function: mend its entry point")
    return InstalledScorer(Scorer("score", _guarded(name, function)), identity)


def _describe(point: metadata.EntryPoint) -> str:
    distribution = point.dist
    whose = "of no distribution" if distribution is None else f"{distribution.name} {distribution.version}"
    return f"{point.name} ({whose})"


def _guarded(name: str, function: Callable[..., Any]) -> Callable[[Task, str, str], Score]:
    """The function, with all that is no score from 0 to 1 turned into the reason why the sample is unscored."""

    def score(task: Task, answer: str, target: str) -> Score:
        try:
            given = function(task, answer, target)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a scorer stops no run
            return Score(None, f"scorer {name} raised {type(error).__name__}: {error}"[:LONGEST_REASON])
        value, reason = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
        if value is None:
            return Score(None, str(reason)[:LONGEST_REASON] if reason else f"scorer {name} gives no score")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return Score(None, f"scorer {name} gives {value!r}, no number from 0 to 1"[:LONGEST_REASON])
        if not 0 <= value <= 1:
            return Score(None, f"scorer {name} gives {value!r}, which is not from 0 to 1"[:LONGEST_REASON])
        return Score(float(value), None if reason is None else str(reason)[:LONGEST_REASON])

    return score
