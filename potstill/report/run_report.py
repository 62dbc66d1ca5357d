"""Gathers what a run made into its page (`report.html`) and its figures (`summary.json`)."""

import os
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from potstill.approval import Approval
from potstill.artifacts import ArtifactRef, ArtifactStore, write_atomically
from potstill.curation import curate
from potstill.curation.curate import CurationSummary
from potstill.evaluation.generate import read_speed
from potstill.evaluation.metrics import ArmMetrics, EvalReport
from potstill.evaluation.report import read_arms, read_report
from potstill.gate import CANDIDATE, GateDecision, Verdict
from potstill.gate_stage import read_decision
from potstill.ledger.spend import to_nano
from potstill.records import Row
from potstill.release import aliases
from potstill.report.page import (
    ArmRow,
    CheckRow,
    CostPer1k,
    CurveRow,
    DisagreementRow,
    FunnelRow,
    LineageRow,
    ReportData,
    SpendRow,
    format_score,
    format_usd,
    render,
)
from potstill.run_record import RunRecord
from potstill.teacher import collect
from potstill.teacher.collect import CompletionsSummary
from potstill.training.launch import read_curve, read_status

THOUSAND = 1000
REPORTS_VARIABLE = "POTSTILL_REPORTS_URL"


class ArmSummary(Row):
    score: float | None
    low: float | None
    high: float | None
    n: int


class RunSummary(Row):
    """The figures of a run."""

    recipe: str
    verdict: Verdict
    headline: str
    """The verdict in one sentence."""
    arms: dict[str, ArmSummary]
    spent_usd: Decimal
    """Every attempt behind the teacher's answers, whenever it was made."""
    unknown_usd: Decimal
    cost_per_1k_usd: dict[str, Decimal | None]
    """What 1,000 requests cost at the teacher and on the student's machine."""
    release: str | None
    """The version that this student is, where it was released."""
    is_served: bool = False
    """Whether that version answers to the recipe's name, as this was written."""
    student: str | None = None
    """The student's digest, as the page shows it: `potstill approve --student` takes it."""
    approval: Approval | None = None
    """Somebody's word, where the recipe asks for it and it has been said."""
    report: str
    """The path of the page."""

    @property
    def link(self) -> str:
        """The page's address: below `POTSTILL_REPORTS_URL`, where the folder of reports is shown, else on this disk."""
        path = Path(self.report)
        shown = os.environ.get(REPORTS_VARIABLE)
        return f"{shown.rstrip('/')}/{'/'.join(path.parts[-3:])}" if shown else path.as_uri()

    def describe(self) -> str:
        """The figures as Markdown."""
        rows = "\n".join(
            f"| {name} | {format_score(arm.score)} | {format_score(arm.low)} – {format_score(arm.high)} | {arm.n} |"
            for name, arm in self.arms.items()
        )
        costs = ", ".join(f"{name} {format_usd(cost)}" for name, cost in self.cost_per_1k_usd.items())
        return (
            f"**{self.headline}**\n\n{self._links}\n\n"
            f"| arm | score | 95 % interval | test prompts |\n|---|--:|---|--:|\n{rows}\n\n"
            f"Spent on the teacher: {format_usd(self.spent_usd)}. 1,000 requests cost: {costs}.\n"
        )

    @property
    def _links(self) -> str:
        """Where to read on. A browser opens no file from a page of a server: its path is only named."""
        page = f"[report.html]({self.link})" if self.link.startswith("http") else f"`{self.report}`"
        label = "Release" if self.is_served else "Version, which does not serve"
        served = f" {label}: `{self.recipe}@{self.release}`." if self.release else ""
        return f"Report: {page}.{served}"


def write_report(run: RunRecord, store: ArtifactStore) -> RunSummary:
    """Write a run's record, page and figures into its folder, and return the figures."""
    directory = run.directory(store.root)
    evaluation = read_report(store.path(run.evaluation))
    decision = read_decision(store.path(run.decision))
    spend = collect.read_summary(store.path(run.completions))
    cost = _cost_per_1k(run, spend, store)
    champion = aliases(store.root, run.recipe.name).champion
    summary = RunSummary(
        recipe=run.recipe.name,
        verdict=decision.verdict,
        headline=_headline(run, decision, champion),
        arms={arm.arm: ArmSummary(score=arm.score, low=arm.low, high=arm.high, n=arm.n) for arm in evaluation.arms},
        spent_usd=spend.total_cost_usd,
        unknown_usd=spend.unknown_usd,
        cost_per_1k_usd={"teacher": cost.teacher, "student": cost.student},
        release=run.release.version if run.release else None,
        is_served=run.release is not None and run.release.version == champion,
        student=run.student.digest[:12],
        approval=run.approval,
        report=str(directory / "report.html"),
    )
    page = render(_report_data(run, evaluation, decision, spend, cost, store))
    write_atomically(Path(summary.report), page)
    write_atomically(directory / "summary.json", summary.model_dump_json(indent=2))
    run.write(store.root)
    return summary


def _report_data(
    run: RunRecord,
    evaluation: EvalReport,
    decision: GateDecision,
    spend: CompletionsSummary,
    cost: CostPer1k,
    store: ArtifactStore,
) -> ReportData:
    recipe = run.recipe
    curve = read_curve(store.path(run.student))
    missed = next((arm for arm in evaluation.arms if arm.arm == CANDIDATE), None)
    return ReportData(
        recipe_name=recipe.name,
        created_at=datetime.now(UTC),
        verdict=decision.verdict,
        reasons=decision.reasons,
        checks=tuple(CheckRow(**check.model_dump()) for check in decision.checks),
        arms=tuple(ArmRow(**arm.model_dump(exclude={"exact", "answered_by"})) for arm in evaluation.arms),
        floor=decision.floor,
        retention=decision.retention,
        retention_low=decision.lower,
        spend=(
            SpendRow(
                purpose="teach",
                model=recipe.teacher.model,
                attempts=spend.attempts,
                input_tokens=spend.input_tokens,
                output_tokens=spend.output_tokens,
                cost_usd=spend.total_cost_usd,
                unknown_usd=spend.unknown_usd,
            ),
        ),
        cost_per_1k_usd=cost,
        training_curve=tuple(CurveRow(step=p.step, loss=p.loss) for p in curve if p.loss is not None),
        validation_curve=tuple(
            CurveRow(step=p.step, loss=p.validation_loss) for p in curve if p.validation_loss is not None
        ),
        funnel=_funnel(curate.read_summary(store.path(run.prompts)), spend, run, store),
        disagreements=tuple(
            DisagreementRow(
                prompt=row.prompt, target=row.target, teacher=row.teacher or "", candidate=row.candidate or ""
            )
            for row in evaluation.disagreements
        ),
        num_disagreements=_num_missed(missed),
        lineage=_lineage(run, store),
        notes=recipe.notes,
        commands=(f"potstill run recipes/{recipe.name}.yaml", f"potstill report {recipe.name}"),
    )


def _funnel(
    summary: CurationSummary, spend: CompletionsSummary, run: RunRecord, store: ArtifactStore
) -> tuple[FunnelRow, ...]:
    readable = summary.lines_read - summary.quarantined
    steps = {
        "lines read": summary.lines_read,
        "readable": readable,
        "of this workload": readable - summary.other_workloads,
        "distinct prompts": summary.kept,
        "answered by the teacher": spend.answered,
        "trained on": read_status(store.path(run.student)).examples,
    }
    return tuple(FunnelRow(label=label, count=count) for label, count in steps.items())


def _lineage(run: RunRecord, store: ArtifactStore) -> tuple[LineageRow, ...]:
    refs: dict[str, ArtifactRef] = {
        "prompts": run.prompts,
        "teacher's answers": run.completions,
        "training data": run.dataset,
        "student": run.student,
        "evaluation": run.evaluation,
        "gate decision": run.decision,
    }
    release = f"{run.recipe.name}@{run.release.version}" if run.release else "nothing released"
    scorer = read_report(store.path(run.evaluation)).scorer
    described = {
        "recipe": run.recipe.fingerprint[:12],
        "teacher": run.recipe.teacher.model,
        "teacher's terms": "; ".join(terms.describe() for terms in store.manifest(run.student).teacher_terms)
        or "not on record",
        "base": run.recipe.student.base,
        **({} if scorer is None else {"scorer": scorer}),
        **{name: ref.digest[:12] for name, ref in refs.items()},
        "release": release,
        **({} if run.approval is None else {"approval": _word(run.approval)}),
        "code": store.manifest(run.evaluation).code_revision[:18] or "not a git checkout",
    }
    return tuple(LineageRow(label=label, value=value) for label, value in described.items())


def _word(approval: Approval) -> str:
    said = "approved" if approval.is_approved else "rejected"
    return f"{said} by {approval.approver} on {approval.at:%Y-%m-%d %H:%M} UTC: {approval.reason}"


def _cost_per_1k(run: RunRecord, spend: CompletionsSummary, store: ArtifactStore) -> CostPer1k:
    speed = read_speed(store.path(read_arms(store.path(run.evaluation))[CANDIDATE]))
    per_hour = run.recipe.serving.usd_per_hour
    answers = spend.answered + spend.quarantined
    teacher = to_nano(spend.total_cost_usd / answers * THOUSAND)
    student = to_nano(per_hour / 3600 * Decimal(f"{speed.seconds_per_prompt:.6f}") * THOUSAND)
    return CostPer1k(
        teacher=teacher,
        student=student,
        how=(
            f"Teacher: the bill of this run, divided by its {answers:,} answers. Student: {speed.seconds_per_prompt:.3f} s of "
            f"the machine for a request, measured on {speed.prompts} test prompts one at a time, as it is served, at "
            f"{format_usd(per_hour)} an hour, the machine busy all the time."
        ),
    )


def _headline(run: RunRecord, decision: GateDecision, champion: str | None) -> str:
    kept = f"retention {format_score(decision.retention)}, lower bound {format_score(decision.lower)}, floor {decision.floor:g}"
    return f"{decision.verdict.capitalize()}: {kept}, {decision.n} test prompts; {_served(run, decision, champion)}"


def _served(run: RunRecord, decision: GateDecision, champion: str | None) -> str:
    """What became of the student, and what is true of it now: an old run may be shown again."""
    name, word = run.recipe.name, run.approval
    if run.release is not None:
        approved = f", approved by {word.approver}" if word else ""
        if run.release.version == champion:
            return f"{name}@{champion} is released{approved}"
        serves = f"{name}@{champion} serves" if champion else "nothing serves"
        if run.release.alias == "champion":
            return f"{name}@{run.release.version} was released{approved}; now {serves}"
        return (
            f"{name}@{run.release.version} does not serve{approved}: it was taken out of service after this decision, and only "
            f"a new decision or `potstill rollback {name}` brings it back; {serves}"
        )
    if word is not None:
        return f"nothing is released: {word.approver} said no ({word.reason})"
    if decision.verdict == "passed" and run.awaits_approval:
        return f"nothing is released yet: it awaits approval (Resume in the menu of the run's page, or `potstill approve {name} --student {run.student.digest[:12]}`)"
    return "nothing is released"


def _num_missed(arm: ArmMetrics | None) -> int | None:
    return None if arm is None or arm.score is None or arm.metric != "accuracy" else round(arm.n * (1 - arm.score))
