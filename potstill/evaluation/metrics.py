"""Scores of single answers, put together: one figure an arm with its interval, and what could not be scored."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from potstill.errors import DataError
from potstill.recipe import Task
from potstill.records import Completion, Prompt, Row, TaskKind
from potstill.scorers import MetricName, Score, score, scorer_identity, scorer_of
from potstill.statistics import Interval, mean_interval, wilson_interval

MAX_DISAGREEMENTS = 20
PROMPT_EXCERPT = 400
ANSWER_EXCERPT = 2000

TargetKind = Literal["reference", "teacher", "mixed"]


class ScoreLine(Row):
    """One line of scores.jsonl: the score of one arm on one prompt."""

    prompt_id: str
    arm: str
    score: float | None
    """From 0 to 1; null where it could not be scored."""
    slice: str | None = None
    reason: str | None = None
    """Why it is unscored, or could not be right."""


class ArmMetrics(Row):
    """How one arm did on the test prompts."""

    arm: str
    metric: MetricName
    score: float | None
    """Mean over the scored prompts; None where nothing could be scored."""
    low: float | None
    high: float | None
    """95 % interval: Wilson's where every score is 0 or 1, else Student's t."""
    n: int
    """Scored prompts."""
    unscored: int
    truncated: int
    """Answers that ended at the token limit; they are scored as they are."""
    errors: int
    """Prompts without an answer: 0 for a student, unscored for the teacher."""
    exact: float | None = None
    """Extraction: share of the scored prompts on which every field agrees."""
    answered_by: str | None = None
    """What every answer is signed with: a teacher's model, a base, an adapter; None where they differ."""

    @property
    def row(self) -> dict[str, str | int]:
        """The arm as a line of a table that a person reads."""
        score, low, high = ("–" if value is None else f"{value:.3f}" for value in (self.score, self.low, self.high))
        return {
            "arm": self.arm,
            "score": score,
            "95 % interval": f"{low} – {high}",
            "scored": self.n,
            "unscored": self.unscored,
            "truncated": self.truncated,
            "no answer": self.errors,
        }


class Disagreement(Row):
    """A prompt on which the candidate missed the target."""

    prompt_id: str
    prompt: str
    """The start of the last user message."""
    target: str
    teacher: str | None
    candidate: str | None


class EvalReport(Row):
    task_kind: TaskKind
    metric: MetricName
    target: TargetKind
    """What answers were compared with."""
    num_prompts: int
    arms: tuple[ArmMetrics, ...]
    disagreements: tuple[Disagreement, ...]
    """The candidate's worst first."""
    scorer: str | None = None
    """Name, distribution and version of the installed scorer that judged; None for the kind's own."""


class Evaluation(NamedTuple):
    report: EvalReport
    lines: list[ScoreLine]
    """One for each arm and prompt, arms in the given order."""


class _Target(NamedTuple):
    text: str | None
    """None where nothing is known to compare with."""
    kind: Literal["reference", "teacher"] | None


class _Sample(NamedTuple):
    prompt_id: str
    completion: Completion | None
    score: Score


def evaluate_arms(task: Task, prompts: Sequence[Prompt], arms: Mapping[str, Mapping[str, Completion]]) -> Evaluation:
    """Score every arm on every prompt against its reference, or else against the teacher's usable answer.

    `arms` maps the name of an arm (teacher, base, candidate, champion…) to its answers by prompt id. A prompt
    with neither reference nor teacher's answer is unscored for all. A request that failed scores 0 for a student.

    Errors: `DataError` without prompts or arms; those of `scorer_of`.
    """
    if not prompts:
        raise DataError("no prompts to evaluate: the test split is empty; add prompts or raise curation.test_fraction")
    if not arms:
        raise DataError("no arms to evaluate: give at least one set of completions")
    targets = {prompt.prompt_id: _target(prompt, arms.get("teacher", {})) for prompt in prompts}
    samples = {
        arm: [_judge(task, arm, prompt_id, answers.get(prompt_id), target) for prompt_id, target in targets.items()]
        for arm, answers in arms.items()
    }
    metric = scorer_of(task).metric
    report = EvalReport(
        task_kind=task.kind,
        metric=metric,
        target=_target_kind(targets.values()),
        num_prompts=len(targets),
        arms=tuple(_summarise(arm, metric, rows) for arm, rows in samples.items()),
        disagreements=_disagreements(prompts, targets, samples.get("candidate", []), arms.get("teacher", {})),
        scorer=scorer_identity(task),
    )
    lines = [
        ScoreLine(prompt_id=row.prompt_id, arm=arm, score=row.score.value, reason=row.score.reason)
        for arm, rows in samples.items()
        for row in rows
    ]
    return Evaluation(report, lines)


def _target(prompt: Prompt, teacher: Mapping[str, Completion]) -> _Target:
    if prompt.reference is not None:
        return _Target(prompt.reference, "reference")
    answer = teacher.get(prompt.prompt_id)
    if answer is None or answer.quarantine is not None:
        return _Target(None, None)
    return _Target(answer.completion, "teacher")


def _target_kind(targets: Iterable[_Target]) -> TargetKind:
    kinds = {target.kind for target in targets} - {None}
    if len(kinds) == 2:
        return "mixed"
    return "reference" if kinds == {"reference"} else "teacher"


def _judge(task: Task, arm: str, prompt_id: str, completion: Completion | None, target: _Target) -> _Sample:
    if target.text is None:
        scored = Score(None, "no reference, and no usable answer of the teacher")
    elif completion is None or _is_error(completion):
        reason = "no answer" if completion is None else completion.quarantine
        scored = Score(None if arm == "teacher" else 0.0, reason)
    else:
        scored = score(task, completion, target.text)
    return _Sample(prompt_id, completion, scored)


def _is_error(completion: Completion) -> bool:
    return (completion.quarantine or "").startswith("error")


def _summarise(arm: str, metric: MetricName, samples: Sequence[_Sample]) -> ArmMetrics:
    values = [sample.score.value for sample in samples if sample.score.value is not None]
    interval = _interval(values)
    names = {row.completion.teacher for row in samples if row.completion is not None}
    exact = [sample.score.exact for sample in samples if sample.score.exact is not None]
    return ArmMetrics(
        arm=arm,
        metric=metric,
        score=sum(values) / len(values) if values else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        n=len(values),
        unscored=len(samples) - len(values),
        truncated=sum(row.completion is not None and row.completion.finish_reason == "length" for row in samples),
        errors=sum(row.completion is None or _is_error(row.completion) for row in samples),
        exact=sum(exact) / len(exact) if exact and metric == "field_f1" else None,
        answered_by=names.pop() if len(names) == 1 else None,
    )


def _interval(values: Sequence[float]) -> Interval | None:
    if values and all(value in {0, 1} for value in values):
        return wilson_interval(sum(values), len(values))
    return mean_interval(values)


def _disagreements(
    prompts: Sequence[Prompt],
    targets: Mapping[str, _Target],
    candidate: Sequence[_Sample],
    teacher: Mapping[str, Completion],
) -> tuple[Disagreement, ...]:
    missed = [row for row in candidate if row.score.value is not None and row.score.value < 1]
    missed.sort(key=lambda row: row.score.value or 0)
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    return tuple(
        Disagreement(
            prompt_id=row.prompt_id,
            prompt=_last_user_message(by_id[row.prompt_id])[:PROMPT_EXCERPT],
            target=(targets[row.prompt_id].text or "")[:ANSWER_EXCERPT],
            teacher=_answer(teacher.get(row.prompt_id)),
            candidate=_answer(row.completion),
        )
        for row in missed[:MAX_DISAGREEMENTS]
    )


def _answer(completion: Completion | None) -> str | None:
    return None if completion is None else completion.completion[:ANSWER_EXCERPT]


def _last_user_message(prompt: Prompt) -> str:
    contents = [message.get("content") for message in prompt.messages if message.get("role") == "user"]
    return _text(contents[-1]) if contents else ""


def _text(content: Any) -> str:
    """The text of a message's content: a string, or the text of its parts."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part, dict) and part.get("type") == "text")
    return content or ""
