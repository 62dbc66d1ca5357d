"""The smoke: a few prompts answered and paid for, and what the ledger then knows of them and of the rest."""

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import orjson

from potstill.ledger import Caps, KeyCost, Ledger
from potstill.ledger.entries import Answer
from potstill.llm.messages import hidden_tokens
from potstill.llm.providers import PROVIDERS
from potstill.llm.retrying import RetryPolicy
from potstill.records import Usage
from potstill.teacher.estimate import Missing, SampledPrompt
from potstill.teacher.mending import with_retries
from potstill.teacher.outcome import Step
from potstill.teacher.plan import PlannedAnswer, TeachPlan
from potstill.teacher.quality import quarantine_reason
from potstill.teacher.rows import PickedRows
from potstill.teacher.session import TeacherSession


class Sample(NamedTuple):
    """What the ledger knows of the prompts of a smoke."""

    prompts: list[SampledPrompt]
    """Those whose every answer stands there or is refused for good."""
    answers: int
    """Answers of these prompts, refused ones and further samples included."""
    reasons: dict[str, int]
    """How many of them must not be trained on, by the first words of the reason."""
    attempts: int
    wasted: int
    """Attempts that were billed, or may have been, and gave no answer."""


def pick_rows(total: int, wanted: int) -> list[int]:
    """The rows of a smoke: so many, the same ones each time, spread evenly; a larger smoke holds every smaller one.

    They follow van der Corput's sequence: each new row halves one of the widest gaps. Shifted by a third of all rows, they
    lie a third or two thirds into their stretches, never at an edge.
    """
    number = min(total, wanted)
    rows: dict[int, None] = {}
    index = 0
    while len(rows) < number:
        rows[int((_mirrored(index) + Fraction(1, 3)) % 1 * total)] = None
        index += 1
    return list(rows)


def _mirrored(index: int) -> Fraction:
    """The binary digits of a number, mirrored behind the point: 0, 1/2, 1/4, 3/4, 1/8, …"""
    digits = f"{index:b}"
    return Fraction(int(digits[::-1], 2), 2 ** len(digits))


def ask_smoke(
    plan: TeachPlan,
    ledger: Ledger,
    caps: Caps,
    rows: Sequence[int],
    on_step: Callable[[Step], None],
    policy: RetryPolicy | None = None,
) -> None:
    """Ask for what the ledger lacks of these rows' answers, at the expense of the plan's run and month.

    An interrupt cancels what is in flight. Errors: those of `TeacherSession`; what was answered until then is kept.
    """
    if not any(ledger.look_up(answer.key for answer in plan.answers(row, row + 1)).missing for row in rows):
        return
    picked = plan._replace(rows=PickedRows(plan.rows, rows))
    with TeacherSession(picked, ledger, caps, policy, purpose="smoke") as session:
        session.answer(on_step=on_step)  # all at once: what refuses one prompt is told from what refuses every one


def read_sample(plan: TeachPlan, ledger: Ledger, rows: Sequence[int]) -> Sample:
    """What is known of these rows. It asks nothing."""
    sampled: list[SampledPrompt] = []
    reasons: Counter[str] = Counter()
    num_answers = attempts = wasted = 0
    for row in rows:
        wanted = list(plan.answers(row, row + 1))
        if ledger.look_up(answer.key for answer in wanted).missing:
            continue
        asked = with_retries(plan, ledger, wanted)
        costs = ledger.costs(answer.key for answer in asked)
        answers = ledger.find_answers(answer.key for answer in asked)
        known = [_Known(costs.get(answer.key, KeyCost()), answers.get(answer.key)) for answer in asked]
        sampled.append(_sampled(plan, wanted, known))
        pairs = zip(asked, known, strict=True)
        reasons.update(filter(None, (_reason(plan, planned, answer) for planned, (_, answer) in pairs)))
        num_answers += len(known)
        attempts += sum(cost.attempts for cost, _ in known)
        wasted += sum(cost.billed + cost.unknown - (answer is not None) for cost, answer in known)
    return Sample(sampled, num_answers, dict(reasons), attempts, wasted)


def count_missing(plan: TeachPlan, ledger: Ledger, on_rows: Callable[[int], object] | None = None) -> Missing:
    """What the ledger lacks of all answers; `on_rows` is told how many rows are read."""
    total, rows = Missing(0, 0), 0
    for chunk in plan.chunks():
        total = total.plus(_lacking(plan, ledger, chunk))
        rows += len(chunk) // plan.teacher.samples
        if on_rows is not None:
            on_rows(rows)
    return total


def count_missing_of(plan: TeachPlan, ledger: Ledger, rows: Sequence[int]) -> Missing:
    """What the ledger lacks of these rows' answers."""
    total = Missing(0, 0)
    for row in rows:
        total = total.plus(_lacking(plan, ledger, list(plan.answers(row, row + 1))))
    return total


def _lacking(plan: TeachPlan, ledger: Ledger, chunk: Sequence[PlannedAnswer]) -> Missing:
    """Each request is encoded once, as it would be sent, and forgotten; one that stands in two rows counts once."""
    missing = ledger.look_up(answer.key for answer in chunk).missing
    wanted = {answer.key: answer for answer in chunk if answer.key in missing}
    return Missing(
        answers=len(wanted),
        request_bytes=sum(_request_bytes(plan, answer) for answer in wanted.values()),
        hidden_tokens=sum(hidden_tokens(answer.request) for answer in wanted.values()),
    )


class _Known(NamedTuple):
    cost: KeyCost
    answer: Answer | None


def _sampled(plan: TeachPlan, wanted: Sequence[PlannedAnswer], known: Sequence[_Known]) -> SampledPrompt:
    return SampledPrompt(
        request_bytes=sum(_request_bytes(plan, answer) for answer in wanted),
        answers=len(wanted),
        usages=tuple(usage for cost, answer in known for usage in _usages(cost, answer)),
        billed=sum(cost.billed for cost, _ in known),
        unknown=sum(cost.unknown for cost, _ in known),
    )


def _usages(cost: KeyCost, answer: Answer | None) -> list[Usage]:
    """The answer's own tokens, and what the attempts before it took."""
    own = Usage() if answer is None else answer.reply.usage
    cached = max(0, cost.cached_input_tokens - own.cached_input)
    lost = Usage(
        input=max(0, cost.input_tokens - own.input),
        cached_input=cached,
        output=max(0, cost.output_tokens - own.output),
        reasoning=max(0, cost.reasoning_tokens - own.reasoning),
    ).within_input()
    return [usage for usage in (own, lost) if usage != Usage()]


def _request_bytes(plan: TeachPlan, answer: PlannedAnswer) -> int:
    return len(orjson.dumps(PROVIDERS[plan.teacher.provider].body(answer.request)))


def _reason(plan: TeachPlan, planned: PlannedAnswer, answer: Answer | None) -> str | None:
    if answer is None:
        return "refused by the provider"
    reason = quarantine_reason(answer.reply, plan.task, plan.teacher.response_schema, planned.request.messages)
    return reason and reason.partition(":")[0]
