"""The work behind `potstill teach`: asks, writes, and says what it did."""

import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from potstill.artifacts import open_store
from potstill.cli.chat_rows import ChatRows
from potstill.cli.console import progress, say
from potstill.cli.inputs import open_rows
from potstill.curation.curate import write_private
from potstill.errors import (
    BudgetReachedError,
    NotAuthorisedError,
    PermanentTeacherError,
    TransientTeacherError,
    UsageError,
)
from potstill.ledger import Caps, Ledger
from potstill.llm.terms import check_terms
from potstill.recipe import Task, Teacher
from potstill.teacher import collect
from potstill.teacher.collect import CompletionsSummary
from potstill.teacher.outcome import BatchReport, Step
from potstill.teacher.plan import TeachPlan, make_plan, upper_bound_usd
from potstill.teacher.rows import StoredRows
from potstill.teacher.session import TeacherSession

ASK_ABOVE_USD = Decimal(10)
"""On a terminal, a possible bill above this is confirmed first."""


class Request(NamedTuple):
    """What the command was asked to do."""

    prompts: Path
    out: Path
    teacher: Teacher
    task: Task | None
    budget_usd: Decimal | None
    ledger: str | None
    redact: bool
    assume_yes: bool
    as_json: bool


def run_teach(request: Request) -> int:
    """Teach and write; returns the exit code. Errors: those of the teacher's session, after the summary was printed."""
    check_terms(request.teacher)
    rows = open_rows(request.prompts, redact=request.redact)
    plan = make_plan(rows, request.teacher, request.task)
    if not request.assume_yes:
        _confirm(plan)
    return _Teaching(request, plan, rows).run()


class _Teaching:
    def __init__(self, request: Request, plan: TeachPlan, rows: ChatRows | StoredRows) -> None:
        self.request = request
        self.plan = plan
        self.rows = rows
        self.ledger = Ledger(request.ledger)
        self.done = Step()
        self.said = ""

    def run(self) -> int:
        try:
            report = self._ask()
        except BudgetReachedError:
            self._say("budget_reached")
            raise
        except NotAuthorisedError:
            self._say("not_authorised")
            raise
        except TransientTeacherError:
            self._say("incomplete")
            raise
        except PermanentTeacherError:
            self._say("failed")
            raise
        if report.unanswered:
            self._say("incomplete")
            raise TransientTeacherError(
                f"{report.unanswered} prompts have no answer yet (last: {report.last_error}): run the same again to ask only for them"
            )
        summary = self._collect()
        self._show_bad_ones(summary)
        self._keep_unread()
        self._say("done", summary)
        return 0

    def _ask(self) -> BatchReport:
        caps = Caps(run_usd=self.request.budget_usd)
        with (
            progress("teach", self.plan.num_answers) as advance,
            TeacherSession(self.plan, self.ledger, caps) as session,
        ):

            def on_step(step: Step) -> None:
                self.done = self.done.plus(step)
                shown = f"{self.done.cost_usd:.4f} USD"
                advance(self.done.found + self.done.answered, shown, before=self.done.found)

            if self.plan.teacher.mode == "online":
                session.collect_batches(self._tell)
                return session.answer(on_step=on_step, say=self._tell)
            report = session.answer_in_batches(on_step, self._tell)
            if report.unanswered and self.plan.teacher.stragglers_online:
                return session.answer(on_step=on_step, say=self._tell)
            return report

    def _tell(self, said: str) -> None:
        """A line about a batch; the same is not said twice."""
        if said != self.said:
            self.said = said
            print(said, file=sys.stderr, flush=True)

    def _collect(self) -> CompletionsSummary:
        store = open_store()
        inputs = (self.rows.prompts,) if isinstance(self.rows, StoredRows) else ()
        ref = collect.collect(self.plan, self.ledger, store, inputs=inputs)
        store.export(ref, self.request.out)
        return collect.read_summary(store.path(ref))

    def _show_bad_ones(self, summary: CompletionsSummary) -> None:
        for reason, count in Counter(summary.reasons).most_common(3):
            shown = "; ".join(summary.examples[reason])
            print(f"not to be trained on: {count} × {reason} ({shown})", file=sys.stderr)
        if summary.reasons:
            print(f"all of them: {self.request.out}/completions.jsonl, field quarantine", file=sys.stderr)

    def _keep_unread(self) -> None:
        unread = self.rows.quarantined() if isinstance(self.rows, ChatRows) else []
        if unread:
            write_private(self.request.out / "quarantine.jsonl", unread)
            print(
                f"lines that could not be read: {len(unread)}, see {self.request.out}/quarantine.jsonl", file=sys.stderr
            )

    def _say(self, status: str, summary: CompletionsSummary | None = None) -> None:
        found = summary or collect.survey(self.plan, self.ledger)
        say(
            {
                "prompts": found.prompts,
                "answered": found.answered,
                "quarantined": found.quarantined,
                "attempts": self.done.attempts,
                "cost_usd": self.done.cost_usd,
                "total_cost_usd": found.total_cost_usd,
                "unknown_usd": found.unknown_usd,
                "status": status,
            },
            as_json=self.request.as_json,
        )


def _confirm(plan: TeachPlan) -> None:
    """Ask before a large bill, where somebody is there to answer."""
    bound = upper_bound_usd(plan)
    if bound <= ASK_ABOVE_USD or not sys.stdin.isatty():
        return
    answer = input(f"{plan.num_answers} requests may cost up to {bound:.2f} USD. Go on? [y/N] ")
    if answer.strip().lower() not in {"y", "yes"}:
        raise UsageError("not confirmed: nothing was asked")
