"""The deploy gate: scores in, decision out. Pure but for `read_score_lines`. A rejection is a result, not an error."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from potstill.errors import DataError
from potstill.evaluation.metrics import ScoreLine
from potstill.recipe import Gate
from potstill.records import Row
from potstill.statistics import (
    Bounds,
    Pairs,
    difference_bounds,
    pairs_to_decide,
    retention_bounds,
    summarise_pairs,
)

Verdict = Literal["passed", "rejected", "undecided"]
EXIT_CODES: dict[Verdict, int] = {"passed": 0, "rejected": 3, "undecided": 4}

TEACHER, CANDIDATE, CHAMPION = "teacher", "candidate", "champion"

MAX_SILENT_LOSS = 0.01
"""A larger share of prompts that could not be paired is said in the reasons."""


class Check(Row):
    """One question of the gate and its answer."""

    name: Literal["retention", "champion"]
    verdict: Verdict
    figure: float | None
    """What was observed; None where it is undefined."""
    bound: float | None
    """The confidence bound that was held against the threshold: the upper one where it rejects, else the lower."""
    threshold: float
    detail: str
    """The finding in one sentence."""


class GateDecision(Row):
    verdict: Verdict
    retention: float | None
    """Candidate's score / teacher's score, on the prompts that both have a score for."""
    lower: float | None
    """Its lower bound: a candidate that truly lies at the floor passes with probability alpha at most."""
    upper: float | None
    """Its upper bound; None where there is none."""
    floor: float
    alpha: float
    n: int
    """Prompts on which candidate and teacher were compared."""
    checks: tuple[Check, ...]
    more_prompts_needed: int | None
    """How many would decide an undecided gate if the observed rates held; None where no number would."""
    reasons: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    def summary(self) -> dict[str, Any]:
        """What `potstill gate --json` prints."""
        keys = {"verdict", "retention", "lower", "floor", "n", "checks", "more_prompts_needed"}
        return self.model_dump(mode="json", include=keys)


class _Finding(NamedTuple):
    check: Check
    bounds: Bounds
    n: int
    more_prompts_needed: int | None


def decide(lines: Iterable[ScoreLine], thresholds: Gate) -> GateDecision:
    """Decide from the scores of the arms `teacher`, `candidate` and, where one serves, `champion`.

    Passed needs every bound on the right side; rejected, one bound on the wrong side; everything between, or too few
    prompts, is undecided.

    Errors: `DataError` for a missing arm, a prompt scored twice for one arm, a score outside 0…1.
    """
    arms = _by_arm(lines)
    for arm in (TEACHER, CANDIDATE):
        if arm not in arms:
            raise DataError(f"no scores of the arm {arm!r}, only of {sorted(arms)}: the gate needs teacher and candidate")
    retention = _check_retention(_pair(arms[CANDIDATE], arms[TEACHER]), thresholds)
    findings = [retention]
    if CHAMPION in arms:
        findings.append(_check_champion(_pair(arms[CANDIDATE], arms[CHAMPION]), thresholds))
    verdicts: set[Verdict] = {finding.check.verdict for finding in findings}
    verdict: Verdict = "passed"
    if verdicts != {"passed"}:
        verdict = "rejected" if "rejected" in verdicts else "undecided"
    checks = tuple(finding.check for finding in findings)
    return GateDecision(
        verdict=verdict,
        retention=retention.bounds.estimate,
        lower=retention.bounds.lower,
        upper=retention.bounds.upper,
        floor=thresholds.retention_floor,
        alpha=thresholds.alpha,
        n=retention.n,
        checks=checks,
        more_prompts_needed=_most_needed(findings) if verdict == "undecided" else None,
        reasons=(*(check.detail for check in checks if check.verdict == verdict), *_losses(arms)),
    )


def read_score_lines(path: Path) -> list[ScoreLine]:
    """The lines of a scores.jsonl: `{"prompt_id", "arm", "score": number or null, "slice"?, "reason"?}`.

    Errors: `DataError` naming file and line; blank lines are skipped.
    """
    lines: list[ScoreLine] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    lines.append(_read_line(line, f"{path}:{number}"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name a file of scores") from None
    if not lines:
        raise DataError(f"{path} holds no scores: it needs lines of {{prompt_id, arm, score}}")
    return lines


def _read_line(line: bytes, place: str) -> ScoreLine:
    try:
        return ScoreLine.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{place}: {field + ': ' if field else ''}{first['msg']}; a line is {{prompt_id, arm, score, slice?, reason?}}"
        ) from None


_Scores = Mapping[str, float | None]


def _by_arm(lines: Iterable[ScoreLine]) -> dict[str, dict[str, float | None]]:
    arms: dict[str, dict[str, float | None]] = {}
    for line in lines:
        scores = arms.setdefault(line.arm, {})
        if line.prompt_id in scores:
            raise DataError(f"prompt {line.prompt_id!r} is scored twice for {line.arm!r}: keep one score a prompt and arm")
        if line.score is not None and not 0 <= line.score <= 1:
            raise DataError(
                f"prompt {line.prompt_id!r} has score {line.score} for {line.arm!r}: scores lie between 0 and 1, "
                "null where unscored"
            )
        scores[line.prompt_id] = line.score
    return arms


def _pair(first: _Scores, second: _Scores) -> list[tuple[float, float]]:
    """The scores of two arms on the prompts for which both have one."""
    return [
        (score, other)
        for prompt_id, score in first.items()
        if score is not None and (other := second.get(prompt_id)) is not None
    ]


def _check_retention(scores: list[tuple[float, float]], thresholds: Gate) -> _Finding:
    pairs, floor, confidence = summarise_pairs(scores), thresholds.retention_floor, _percent(1 - thresholds.alpha)
    bounds = retention_bounds(pairs, thresholds.alpha)
    verdict = _verdict(bounds, floor, len(scores), thresholds)
    needed = _more_needed(pairs, floor, lambda scaled: retention_bounds(scaled, thresholds.alpha), thresholds)
    bound = bounds.upper if verdict == "rejected" else bounds.lower
    if bounds.estimate is None or bound is None:
        finding = f"retention cannot be computed: the teacher scores nothing on the {len(scores)} prompts compared"
    else:
        finding = (
            f"the candidate keeps {_percent(bounds.estimate)} of the teacher's score on {len(scores)} prompts, with "
            f"{confidence} confidence {'at most' if verdict == 'rejected' else 'at least'} {_percent(bound)}; "
            f"the floor is {_percent(floor)}"
        )
    check = Check(
        name="retention",
        verdict=verdict,
        figure=bounds.estimate,
        bound=bound,
        threshold=floor,
        detail=finding + _what_would_help(verdict, len(scores), needed, thresholds),
    )
    return _Finding(check, bounds, len(scores), needed)


def _check_champion(scores: list[tuple[float, float]], thresholds: Gate) -> _Finding:
    pairs, threshold, confidence = summarise_pairs(scores), -thresholds.champion_margin, _percent(1 - thresholds.alpha)
    bounds = difference_bounds(pairs, thresholds.alpha)
    verdict = _verdict(bounds, threshold, len(scores), thresholds)
    needed = _more_needed(pairs, threshold, lambda scaled: difference_bounds(scaled, thresholds.alpha), thresholds)
    bound = bounds.upper if verdict == "rejected" else bounds.lower
    if bounds.estimate is None or bound is None:
        finding = f"candidate and champion share only {len(scores)} scored prompts"
    else:
        finding = (
            f"the candidate scores {_points(bounds.estimate)} against the champion on {len(scores)} prompts, with "
            f"{confidence} confidence {'at most' if verdict == 'rejected' else 'at least'} {_points(bound)}; "
            f"{_points(threshold)} is allowed"
        )
    check = Check(
        name="champion",
        verdict=verdict,
        figure=bounds.estimate,
        bound=bound,
        threshold=threshold,
        detail=finding + _what_would_help(verdict, len(scores), needed, thresholds),
    )
    return _Finding(check, bounds, len(scores), needed)
