"""Answers that must not be trained on are asked for again: as further samples, up to `teacher.quality_retries` of them."""

from collections.abc import Iterator, Mapping, Sequence

from potstill.ledger import Ledger
from potstill.ledger.entries import Answer
from potstill.llm.messages import Reply
from potstill.teacher.plan import PlannedAnswer, TeachPlan
from potstill.teacher.quality import TRUNCATED, quarantine_reason


def retries_wanted(plan: TeachPlan, ledger: Ledger, chunk: Sequence[PlannedAnswer]) -> Iterator[PlannedAnswer]:
    """The next sample of each prompt of a chunk that has only bad ones; those that the ledger holds are passed over.

    Nothing is wanted of a prompt while one of its samples is missing or refused: there is nothing to judge by.
    """
    if plan.teacher.quality_retries:
        for _, wanted in _chains(plan, ledger, chunk):
            if wanted is not None:
                yield wanted


def with_retries(plan: TeachPlan, ledger: Ledger, chunk: Sequence[PlannedAnswer]) -> list[PlannedAnswer]:
    """A chunk with the further samples of its prompts that the ledger holds, each behind the others of its prompt."""
    if not plan.teacher.quality_retries:
        return list(chunk)
    return [answer for answers, _ in _chains(plan, ledger, chunk) for answer in answers]


def in_order(plan: TeachPlan, ledger: Ledger, start: int = 0) -> Iterator[list[PlannedAnswer]]:
    """What the rows from `start` on want, further samples in place of bad ones included: a list for each `CHUNK_ROWS`."""
    for chunk in plan.chunks(start):
        yield [*chunk, *retries_wanted(plan, ledger, chunk)]


def _chains(
    plan: TeachPlan, ledger: Ledger, chunk: Sequence[PlannedAnswer]
) -> list[tuple[list[PlannedAnswer], PlannedAnswer | None]]:
    """By prompt, in order: the samples that there are, and the one that is wanted next, if any."""
    size = plan.teacher.samples
    groups = [list(chunk[start : start + size]) for start in range(0, len(chunk), size)]
    answers = ledger.find_answers(answer.key for answer in chunk)
    wanted = [_next(plan, group, answers) for group in groups]
    for _ in range(plan.teacher.quality_retries):
        found = ledger.find_answers(answer.key for answer in wanted if answer is not None)
        answers = {**answers, **found}
        for index, answer in enumerate(wanted):
            if answer is not None and answer.key in found:
                groups[index].append(answer)
                wanted[index] = _next(plan, groups[index], answers)
    return list(zip(groups, wanted, strict=True))


def _next(plan: TeachPlan, samples: Sequence[PlannedAnswer], answers: Mapping[str, Answer]) -> PlannedAnswer | None:
    if len(samples) == plan.teacher.samples + plan.teacher.quality_retries:
        return None
    known = [answers.get(sample.key) for sample in samples]
    if any(answer is None for answer in known):
        return None
    first = samples[0]
    reasons = [_reason(plan, first, answer.reply) for answer in known if answer is not None]
    if not all(reasons):
        return None
    return plan.sample(first.row_id, first.prompt, len(samples), times_truncated=reasons.count(TRUNCATED))


def _reason(plan: TeachPlan, asked: PlannedAnswer, reply: Reply) -> str | None:
    return quarantine_reason(reply, plan.task, plan.teacher.response_schema, asked.request.messages)
