"""The deploy gate: scores in, decision out. Pure but for `read_score_lines`. A rejection is a result, not an error."""

from collections.abc import Callable, Iterable, Iterator, Mapping
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
CheckName = Literal["retention", "champion"]
EXIT_CODES: dict[Verdict, int] = {"passed": 0, "rejected": 3, "undecided": 4}

TEACHER, CANDIDATE, CHAMPION = "teacher", "candidate", "champion"

MAX_SILENT_LOSS = 0.01
"""A larger share of prompts that could not be paired is said in the reasons."""


class Check(Row):
    """One question of the gate and its answer."""

    name: CheckName
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
    candidate: str | None = None
    """Who answered as the candidate, where the evaluation knows it: only that student may be released on this."""

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    def describe(self) -> str:
        """The decision as Markdown."""
        lines = [f"**{check.name}** {check.verdict}: {check.detail}" for check in self.checks]
        listed = "\n".join(f"- {line}" for line in (*lines, *self.remarks))
        return f"## {self.verdict.capitalize()}\n\n{listed}\n"

    @property
    def reason(self) -> str:
        """What was found, in one sentence."""
        return next((check.detail for check in self.checks), "nothing was compared")

    @property
    def remarks(self) -> list[str]:
        """The reasons that no check has said."""
        said = {check.detail for check in self.checks}
        return [reason for reason in self.reasons if reason not in said]

    def summary(self) -> dict[str, Any]:
        """What `potstill gate --json` prints."""
        keys = {"verdict", "retention", "lower", "floor", "n", "checks", "more_prompts_needed"}
        return self.model_dump(mode="json", include=keys)


class _Question(NamedTuple):
    """What differs between one check and another."""

    name: CheckName
    bounds: Callable[[Pairs, float], Bounds]
    threshold: float
    finding: str
    """The sentence's first part, with a place for the figure."""
    limit: str
    """Its last part, with a place for the threshold."""
    undefined: str
    """The sentence where there is no figure."""
    unit: Callable[[float], str]


class _Finding(NamedTuple):
    check: Check
    bounds: Bounds
    n: int
    more_prompts_needed: int | None


def decide(lines: Iterable[ScoreLine], thresholds: Gate, candidate: str | None = None) -> GateDecision:
    """Decide from the scores of the arms `teacher`, `candidate` and, where one serves, `champion`.

    Passed needs every bound on the right side; rejected, one bound on the wrong side; everything between, or too few
    prompts, is undecided. So is a candidate that would not pass if it had failed on the prompts that it has no score for.

    `candidate` is who answered as the candidate, for the record.

    Errors: `DataError` for a missing arm, a prompt scored twice for one arm, a score outside 0…1.
    """
    arms = _by_arm(lines)
    for arm in (TEACHER, CANDIDATE):
        if arm not in arms:
            raise DataError(
                f"no scores of the arm {arm!r}, only of {sorted(arms)}: the gate needs teacher and candidate"
            )
    retention = _compare(_retention(thresholds), arms[CANDIDATE], arms[TEACHER], thresholds)
    findings = [retention]
    if CHAMPION in arms:
        findings.append(_compare(_not_inferior(thresholds), arms[CANDIDATE], arms[CHAMPION], thresholds))
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
        candidate=candidate,
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
            raise DataError(
                f"prompt {line.prompt_id!r} is scored twice for {line.arm!r}: keep one score a prompt and arm"
            )
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


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"


def _retention(thresholds: Gate) -> _Question:
    return _Question(
        name="retention",
        bounds=retention_bounds,
        threshold=thresholds.retention_floor,
        finding="the candidate keeps {} of the teacher's score",
        limit="the floor is {}",
        undefined="retention is undefined, the teacher scores 0",
        unit=_percent,
    )


def _not_inferior(thresholds: Gate) -> _Question:
    return _Question(
        name="champion",
        bounds=difference_bounds,
        threshold=-thresholds.champion_margin,
        finding="the candidate differs from the champion by {}",
        limit="{} is allowed",
        undefined="the candidate cannot be compared with the champion",
        unit=_points,
    )


def _compare(question: _Question, candidate: _Scores, other: _Scores, thresholds: Gate) -> _Finding:
    """The finding on the prompts that both have a score for; where the candidate's are missing, no pass rests on that."""
    finding = _examine(question, _pair(candidate, other), thresholds)
    missing = [prompt for prompt, score in other.items() if score is not None and candidate.get(prompt) is None]
    if finding.check.verdict != "passed" or len(missing) <= MAX_SILENT_LOSS * len(other):
        return finding
    failed = dict.fromkeys(missing, 0.0)
    if _examine(question, _pair({**candidate, **failed}, other), thresholds).check.verdict == "passed":
        return finding
    detail = (
        f"{finding.check.detail}; but {len(missing)} of {len(other)} prompts have no score of the candidate, and it would "
        "not pass if it had failed on them: have them scored"
    )
    return finding._replace(check=finding.check.model_copy(update={"verdict": "undecided", "detail": detail}))


def _examine(question: _Question, scores: list[tuple[float, float]], thresholds: Gate) -> _Finding:
    n, alpha, pairs = len(scores), thresholds.alpha, summarise_pairs(scores)
    bounds = question.bounds(pairs, alpha)
    verdict = _verdict(bounds, question.threshold, enough=n >= thresholds.min_prompts)
    bound = bounds.upper if verdict == "rejected" else bounds.lower
    if bounds.estimate is None or bound is None:
        detail = f"{question.undefined} on {n} prompts"
    else:
        detail = (
            f"{question.finding.format(question.unit(bounds.estimate))} on {n} prompts, with {100 * (1 - alpha):g} % "
            f"confidence {'at most' if verdict == 'rejected' else 'at least'} {question.unit(bound)}; "
            f"{question.limit.format(question.unit(question.threshold))}"
        )
    more = None
    if verdict == "undecided":
        total = pairs_to_decide(pairs, question.threshold, lambda scaled: question.bounds(scaled, alpha))
        more = _more_prompts(n, total, thresholds.min_prompts)
        detail += _what_would_help(n, more, thresholds.min_prompts)
    check = Check(
        name=question.name,
        verdict=verdict,
        figure=bounds.estimate,
        bound=bound,
        threshold=question.threshold,
        detail=detail,
    )
    return _Finding(check, bounds, n, more)


def _verdict(bounds: Bounds, threshold: float, *, enough: bool) -> Verdict:
    if enough and bounds.lower is not None and bounds.lower >= threshold:
        return "passed"
    if enough and bounds.upper is not None and bounds.upper < threshold:
        return "rejected"
    return "undecided"


def _more_prompts(n: int, total: int | None, min_prompts: int) -> int | None:
    """How many are missing to `total` and to the minimum; None where only an impossible number would do."""
    if total is None:
        return min_prompts - n if n < min_prompts else None
    return max(total, min_prompts) - n


def _what_would_help(n: int, more: int | None, min_prompts: int) -> str:
    if n < min_prompts:
        return f"; n too small: nothing is decided below {min_prompts} prompts, get {more} more"
    if more is None:
        return "; no number of prompts would decide at these rates"
    return f"; {more} more prompts would decide if these rates held"


def _most_needed(findings: Iterable[_Finding]) -> int | None:
    needed = [finding.more_prompts_needed for finding in findings if finding.check.verdict == "undecided"]
    return None if None in needed else max(more for more in needed if more is not None)


def _losses(arms: Mapping[str, _Scores]) -> Iterator[str]:
    """What was left out of each comparison, where it is more than a trifle."""
    candidate = arms[CANDIDATE]
    for arm in (TEACHER, CHAMPION):
        if arm not in arms:
            continue
        prompts = candidate.keys() | arms[arm].keys()
        left_out = len(prompts) - len(_pair(candidate, arms[arm]))
        if left_out > MAX_SILENT_LOSS * len(prompts):
            without = {name: sum(arms[name].get(prompt) is None for prompt in prompts) for name in (CANDIDATE, arm)}
            yield (
                f"{left_out} of {len(prompts)} prompts were left out of the comparison with the {arm}: "
                + ", ".join(f"{count} without a score of the {name}" for name, count in without.items() if count)
            )
