"""The work behind `potstill teach`: asks, writes, and says what it did."""

import sys
from collections import Counter
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from potstill.artifacts import open_store
from potstill.cli.chat_rows import ChatRows
from potstill.cli.console import how_it_ended, progress, say
from potstill.cli.inputs import open_rows
from potstill.cli.questions import is_attended
from potstill.curation.curate import write_private
from potstill.errors import PotstillError, TransientTeacherError
from potstill.ledger import Caps, Ledger
from potstill.llm.terms import check_terms
from potstill.recipe import Task, Teacher
from potstill.teacher import collect
from potstill.teacher.collect import CompletionsSummary
from potstill.teacher.outcome import BatchReport, Step
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import StoredRows
from potstill.teacher.session import TeacherSession
from potstill.teacher.unfinished import count_at_provider


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
    """Teach and write; returns the exit code. Errors, an interrupt among them, come after the summary was printed."""
    check_terms(request.teacher)
    rows = open_rows(request.prompts, redact=request.redact)
    plan = make_plan(rows, request.teacher, request.task)
    ledger, caps = Ledger(request.ledger), Caps(run_usd=request.budget_usd)
    if not request.assume_yes and is_attended():
        from potstill.cli.confirming import confirm_spending

        confirm_spending(plan, ledger, caps)
    return _Teaching(request, plan, rows, ledger, caps).run()


class _Teaching:
    def __init__(
        self, request: Request, plan: TeachPlan, rows: ChatRows | StoredRows, ledger: Ledger, caps: Caps
    ) -> None:
        self.request = request
        self.plan = plan
        self.rows = rows
        self.ledger = ledger
        self.caps = caps
        self.done = Step()
        self.said = ""

    def run(self) -> int:
        try:
            summary = self._teach()
        except (PotstillError, OSError, KeyboardInterrupt) as error:
            self._say(how_it_ended(error), self._survey())
            raise
        self._say("done", summary)
        return 0

    def _teach(self) -> CompletionsSummary:
        is_written = open_store().lookup(collect.collect_key(self.plan, self.ledger)) is not None
        report = None if is_written else self._ask()  # what came after it would be left out
        if report is not None and report.unanswered:
            raise TransientTeacherError(
                f"{report.unanswered} prompts have no answer yet (last: {report.last_error}): run the same again to ask only for them"
            )
        summary = self._collect()
        self._show_bad_ones(summary)
        self._keep_unread()
        return summary

    def _ask(self) -> BatchReport:
        with (
            progress("teach", self.plan.num_answers) as advance,
            TeacherSession(self.plan, self.ledger, self.caps) as session,
        ):

            def on_step(step: Step) -> None:
                self.done = self.done.plus(step)
                advance(self.done.found + self.done.answered, self.done.describe(), before=self.done.found)

            if self.plan.teacher.mode == "online":
                session.collect_batches(self._tell)
                return session.answer(on_step=on_step, say=self._tell)
            report = session.answer_in_batches(on_step, self._tell)
            if self.plan.teacher.stragglers_online and (report.unanswered or report.unmended):
                return session.answer(on_step=on_step, say=self._tell)
            if report.unmended:
                self._tell(report.describe_unmended())
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

    def _survey(self) -> CompletionsSummary | None:
        """What stands in the ledger; None where it cannot be read, which may be what ended the run."""
        with suppress(PotstillError, OSError):
            return collect.survey(self.plan, self.ledger)
        return None

    def _count_at_provider(self) -> int | None:
        """None where the ledger cannot be read."""
        with suppress(PotstillError, OSError):
            return count_at_provider(self.plan, self.ledger)
        return None

    def _say(self, status: str, found: CompletionsSummary | None) -> None:
        at_provider = self._count_at_provider()
        say(
            {
                "prompts": found and found.prompts,
                "answered": found and found.answered,
                "quarantined": found and found.quarantined,
                "attempts": self.done.attempts,
                "cost_usd": self.done.cost_usd,
                "total_cost_usd": found and found.total_cost_usd,
                "unknown_usd": found and found.unknown_usd,
                "at_provider": at_provider,
                "status": status,
            },
            as_json=self.request.as_json,
        )
        if at_provider:
            print(
                f"{at_provider:,} requests are in batches at the provider: the same command collects them",
                file=sys.stderr,
            )
