"""From the ledger to the `Completions` artefact: one row an answer, one line an input row and sample."""

from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from potstill.artifacts import ArtifactRef, ArtifactStore, StageKey
from potstill.errors import TransientTeacherError
from potstill.fingerprint import fingerprint
from potstill.ledger import Answer, KeyCost, Ledger
from potstill.records import Completion, Row, Usage, write_jsonl, write_parquet
from potstill.teacher.plan import PlannedAnswer, TeachPlan
from potstill.teacher.quality import quarantine_reason

KIND = "Completions"
COMPLETIONS = "completions.parquet"
LINES = "completions.jsonl"
SUMMARY = "summary.json"


class CompletionsSummary(Row):
    """What an output holds, and what it cost."""

    prompts: int
    answered: int
    """Answers that may be used."""
    quarantined: int
    reasons: dict[str, int]
    """Quarantined answers by the first words of their reason."""
    total_cost_usd: Decimal
    """Every attempt behind this output, whenever it was made; unusable ones included."""
    attempts: int
    input_tokens: int
    output_tokens: int
    unknown_usd: Decimal
    """The upper bound of attempts behind this output whose bill nobody knows; not in the total."""


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
    )


def read_summary(directory: Path) -> CompletionsSummary:
    return CompletionsSummary.model_validate_json((directory / SUMMARY).read_bytes())


def _write(plan: TeachPlan, ledger: Ledger, directory: Path) -> int:
    answers = ledger.find_answers(answer.key for answer in plan.answers)
    costs = ledger.costs(answer.key for answer in plan.answers)
    missing = [a for a in plan.answers if a.key not in answers and not (a.key in costs and costs[a.key].refused)]
    if missing:
        known = costs.get(missing[0].key)
        why = known.last_error if known else "it was never asked"
        raise TransientTeacherError(
            f"{len(missing)} of {len(plan.answers)} answers are missing (first: {why}): run the same again to ask only for them"
        )
    completions = [_completion(planned, answers, costs, plan) for planned in plan.answers]
    write_parquet(directory / COMPLETIONS, completions, Completion)
    write_jsonl(directory / LINES, _lines(plan, completions))
    reasons = Counter(row.quarantine.partition(":")[0] for row in completions if row.quarantine)
    summary = CompletionsSummary(
        prompts=len({answer.prompt.prompt_id for answer in plan.answers}),
        answered=len(completions) - reasons.total(),
        quarantined=reasons.total(),
        reasons=dict(reasons),
        total_cost_usd=sum((cost.cost_usd for cost in costs.values()), Decimal(0)),
        attempts=sum(cost.attempts for cost in costs.values()),
        input_tokens=sum(cost.input_tokens for cost in costs.values()),
        output_tokens=sum(cost.output_tokens for cost in costs.values()),
        unknown_usd=sum((cost.unknown_usd for cost in costs.values()), Decimal(0)),
    )
    (directory / SUMMARY).write_text(summary.model_dump_json(indent=2))
    return len(completions)


def _completion(
    planned: PlannedAnswer, answers: Mapping[str, Answer], costs: Mapping[str, KeyCost], plan: TeachPlan
) -> Completion:
    cost = costs[planned.key]
    common: dict[str, Any] = {
        "prompt_id": planned.prompt.prompt_id,
        "sample_index": planned.sample_index,
        "teacher": planned.request.model,
        "cost_usd": cost.cost_usd,
    }
    answer = answers.get(planned.key)
    if answer is None:
        nothing = {"role": "assistant", "content": ""}
        reason = f"error: {cost.last_error}"
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
        quarantine=quarantine_reason(reply, plan.task),
    )


def _lines(plan: TeachPlan, completions: list[Completion]) -> Iterator[dict[str, Any]]:
    by_prompt: dict[str, list[Completion]] = {}
    for row in completions:
        by_prompt.setdefault(row.prompt_id, []).append(row)
    for row_id, prompt in plan.rows:
        for completion in by_prompt[prompt.prompt_id]:
            line = completion.model_dump(mode="json") | {"cost_usd": float(completion.cost_usd)}
            del line["seconds"]
            tools = {"tools": prompt.tools} if prompt.tools else {}
            yield {"id": row_id, **line, "messages": prompt.messages, **tools}
