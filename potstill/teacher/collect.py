"""From the ledger to the `Completions` artefact: one row an answer, one line an input row and sample."""

from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from potstill.artifacts import ArtifactRef, ArtifactStore, StageKey
from potstill.errors import TransientTeacherError
from potstill.fingerprint import fingerprint
from potstill.ledger import KeyCost, Ledger
from potstill.ledger.entries import Answer
from potstill.ledger.spend import Spend
from potstill.llm.terms import state_terms
from potstill.records import Completion, Row, Usage, write_parquet
from potstill.teacher.choosing import choice_scores
from potstill.teacher.mending import with_retries
from potstill.teacher.plan import PlannedAnswer, TeachPlan
from potstill.teacher.quality import quarantine_reason

KIND = "Completions"
COMPLETIONS = "completions.parquet"
LINES = "completions.jsonl"
SUMMARY = "summary.json"
EXAMPLES_A_REASON = 3
EXCERPT_LETTERS = 60


class CompletionsSummary(Row):
    """What an output holds, and what it cost."""

    prompts: int
    answered: int
    """Answers that may be used."""
    quarantined: int
    reasons: dict[str, int]
    """Quarantined answers by the first words of their reason."""
    examples: dict[str, tuple[str, ...]]
    """A few of each: the row's id, and how its answer begins."""
    attempts: int
    """Every attempt behind this output, whenever it was made; unusable ones included."""
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: Decimal
    """What the replies to them said."""
    unknown: int
    """Attempts whose bill nobody knows."""
    unknown_usd: Decimal
    """Their upper bound."""
    total_cost_usd: Decimal
    """The cost, with the mean cost of the others for each attempt that is unknown."""

    def describe(self) -> str:
        """What must not be trained on, with examples, in Markdown."""
        head = f"{self.answered:,} answers may be trained on, {self.quarantined:,} may not."
        rows = (
            f"- {count:,} × {reason}: {'; '.join(map(_quote, self.examples[reason]))}"
            for reason, count in Counter(self.reasons).most_common()
        )
        return "\n".join([head, "", *rows])


def _quote(text: str) -> str:
    return "`" + text.replace("`", "'") + "`"


def collect_key(plan: TeachPlan, ledger: Ledger) -> StageKey:
    """The key of a plan's completions: what is asked, and the ledger whose answers they are."""
    return plan.key._replace(digest=fingerprint([plan.key.digest, ledger.id]))


def collect(
    plan: TeachPlan,
    ledger: Ledger,
    store: ArtifactStore,
    *,
    inputs: tuple[ArtifactRef, ...] = (),
    recipe_fingerprint: str = "",
) -> ArtifactRef:
    """The completions of a plan whose every answer stands in the ledger or is refused for good.

    Errors: `TransientTeacherError` where some are still missing.
    """
    return store.build(
        collect_key(plan, ledger),
        KIND,
        lambda directory: _write(plan, ledger, directory),
        inputs=inputs,
        recipe_fingerprint=recipe_fingerprint,
        teacher_terms=(state_terms(plan.teacher),),
    )


def read_summary(directory: Path) -> CompletionsSummary:
    return CompletionsSummary.model_validate_json((directory / SUMMARY).read_bytes())


def survey(plan: TeachPlan, ledger: Ledger) -> CompletionsSummary:
    """What a plan's completions would hold now, and what they have cost; an answer that is missing counts as none."""
    total = _Total()
    for planned_chunk in plan.chunks():
        chunk = with_retries(plan, ledger, planned_chunk)
        costs = ledger.costs(answer.key for answer in chunk)
        answers = ledger.find_answers(answer.key for answer in chunk)
        for planned in chunk:
            cost, answer = costs.get(planned.key, KeyCost()), answers.get(planned.key)
            is_missing = answer is None and not cost.refused
            total.add(planned, None if is_missing else _completion(planned, answer, cost, plan), cost)
    return total.summary()


def _write(plan: TeachPlan, ledger: Ledger, directory: Path) -> int:
    total = _Total()

    def completions(lines: BinaryIO) -> Iterator[Completion]:
        """A prompt that stands in two rows is one completion and two lines."""
        for planned in plan.chunks():
            chunk = with_retries(plan, ledger, planned)
            costs = ledger.costs(answer.key for answer in chunk)
            rows = list(_complete(plan, ledger, chunk, costs))
            for answer, row in zip(chunk, _chosen(plan, chunk, rows), strict=True):
                lines.write(orjson.dumps(_line(answer, row)) + b"\n")
                if total.add(answer, row, costs[answer.key]):
                    yield row

    with (directory / LINES).open("wb") as lines:
        count = write_parquet(directory / COMPLETIONS, completions(lines), Completion)
    (directory / SUMMARY).write_text(total.summary().model_dump_json(indent=2))
    return count


class _Total:
    """What has been collected so far; each answer counts once."""

    def __init__(self) -> None:
        self._keys: set[bytes] = set()
        self._prompts = 0
        self._missing = 0
        self._reasons: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._spend = Spend()

    def add(self, answer: PlannedAnswer, row: Completion | None, cost: KeyCost) -> bool:
        """Count an answer, None where it is missing; False where it was counted already."""
        key = bytes.fromhex(answer.key)
        if key in self._keys:
            return False
        self._keys.add(key)
        self._prompts += answer.sample_index == 0
        self._missing += row is None
        if row is not None and row.quarantine:
            reason = row.quarantine.partition(":")[0]
            self._reasons[reason] += 1
            if self._reasons[reason] <= EXAMPLES_A_REASON:
                self._examples.setdefault(reason, []).append(_excerpt(answer, row))
        self._spend = self._spend.with_key(cost)
        return True

    def summary(self) -> CompletionsSummary:
        spend = self._spend
        return CompletionsSummary(
            prompts=self._prompts,
            answered=len(self._keys) - self._reasons.total() - self._missing,
            quarantined=self._reasons.total(),
            reasons=dict(self._reasons),
            examples={reason: tuple(found) for reason, found in self._examples.items()},
            attempts=spend.attempts,
            input_tokens=spend.input_tokens,
            cached_input_tokens=spend.cached_input_tokens,
            output_tokens=spend.output_tokens,
            reasoning_tokens=spend.reasoning_tokens,
            cost_usd=spend.cost_usd,
            unknown=spend.unknown,
            unknown_usd=spend.unknown_usd,
            total_cost_usd=spend.estimate_usd,
        )


def _excerpt(answer: PlannedAnswer, row: Completion) -> str:
    said = " ".join((row.completion or row.quarantine or "").split())
    return f"{answer.row_id}: {said[:EXCERPT_LETTERS]}" + ("…" if len(said) > EXCERPT_LETTERS else "")


def _complete(
    plan: TeachPlan, ledger: Ledger, chunk: list[PlannedAnswer], costs: Mapping[str, KeyCost]
) -> Iterator[Completion]:
    answers = ledger.find_answers(answer.key for answer in chunk)
    for planned in chunk:
        cost = costs.get(planned.key, KeyCost())
        answer = answers.get(planned.key)
        if answer is None and not cost.refused:
            why = cost.last_error or "it was never asked"
            raise TransientTeacherError(
                f"{_count_missing(plan, ledger)} of {plan.num_answers} answers are missing (first: {why}): "
                "run the same again to ask only for them"
            )
        yield _completion(planned, answer, cost, plan)


def _count_missing(plan: TeachPlan, ledger: Ledger) -> int:
    return sum(len(ledger.look_up(answer.key for answer in chunk).missing) for chunk in plan.chunks())


def _completion(planned: PlannedAnswer, answer: Answer | None, cost: KeyCost, plan: TeachPlan) -> Completion:
    common: dict[str, Any] = {
        "prompt_id": planned.prompt.prompt_id,
        "sample_index": planned.sample_index,
        "teacher": planned.request.model,
        "cost_usd": cost.cost_usd,
    }
    if answer is None:
        nothing = {"role": "assistant", "content": ""}
        reason = cost.given_up or f"error: {cost.last_error}"
        return Completion(
            **common, completion="", message=nothing, finish_reason="error", usage=Usage(), quarantine=reason
        )
    reply = answer.reply
    return Completion(
        **common,
        completion=reply.text,
        message=reply.message,
        finish_reason=reply.finish_reason,
        usage=reply.usage,
        seconds=answer.seconds,
        quarantine=quarantine_reason(reply, plan.task, plan.teacher.response_schema, planned.request.messages),
    )


def _chosen(plan: TeachPlan, chunk: list[PlannedAnswer], rows: list[Completion]) -> list[Completion]:
    """The rows with what speaks for each of a prompt's usable samples."""
    if plan.teacher.choose == "first":
        return rows
    chosen: list[Completion] = []
    pairs = zip(chunk, rows, strict=True)
    for _, group in groupby(pairs, key=lambda pair: pair[1].prompt_id):
        samples = list(group)
        texts = [row.completion for _, row in samples if row.quarantine is None]
        scores = iter(choice_scores(plan.teacher, plan.task, samples[0][0].prompt, texts))
        for _, row in samples:
            chosen.append(row if row.quarantine else row.model_copy(update={"choice_score": next(scores)}))
    return chosen


def _line(answer: PlannedAnswer, completion: Completion) -> dict[str, Any]:
    line = completion.model_dump(mode="json", exclude={"seconds"}) | {"cost_usd": float(completion.cost_usd)}
    tools = {"tools": answer.prompt.tools} if answer.prompt.tools else {}
    return {"id": answer.row_id, **line, "messages": answer.prompt.messages, **tools}
