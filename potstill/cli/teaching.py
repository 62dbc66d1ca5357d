"""The work behind `potstill teach`: asks, writes, and says what it did."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from potstill.artifacts import open_store
from potstill.cli.console import progress, say
from potstill.cli.inputs import InputRows, read_rows
from potstill.curation.curate import write_private
from potstill.errors import (
    BudgetReachedError,
    NotAuthorisedError,
    PermanentTeacherError,
    TransientTeacherError,
    UsageError,
)
from potstill.ledger import Ledger
from potstill.llm.terms import check_terms
from potstill.recipe import Task, Teacher
from potstill.teacher import collect
from potstill.teacher.outcome import BatchReport, Step
from potstill.teacher.plan import TeachPlan, make_plan, upper_bound_usd
from potstill.teacher.quality import quarantine_reason
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
    rows = read_rows(request.prompts, redact=request.redact)
    plan = make_plan(rows.rows, request.teacher, request.task)
    if not request.assume_yes:
        _confirm(plan)
    return _Teaching(request, plan, rows).run()


class _Teaching:
    def __init__(self, request: Request, plan: TeachPlan, rows: InputRows) -> None:
        self.request = request
        self.plan = plan
        self.rows = rows
        self.ledger = Ledger(request.ledger)
        self.attempts = 0
        self.cost_usd = Decimal(0)

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
        store = open_store()
        inputs = () if self.rows.source is None else (self.rows.source,)
        ref = collect.collect(self.plan, self.ledger, store, inputs=inputs)
        store.export(ref, self.request.out)
        if reasons := collect.read_summary(store.path(ref)).reasons:
            said = ", ".join(f"{count} × {reason}" for reason, count in Counter(reasons).most_common(3))
            print(
                f"answers that must not be trained on: {said}; see {self.request.out}/completions.jsonl",
                file=sys.stderr,
            )
        if self.rows.quarantined:
            write_private(self.request.out / "quarantine.jsonl", self.rows.quarantined)
            print(
                f"lines that could not be read: {len(self.rows.quarantined)}, see {self.request.out}/quarantine.jsonl",
                file=sys.stderr,
            )
        self._say("done")
        return 0

    def _ask(self) -> BatchReport:
        missing = self.ledger.find_missing(answer.key for answer in self.plan.answers)
        with (
            self._counting(len(self.plan.answers) - len(missing)) as on_step,
            TeacherSession(self.plan, self.ledger, self.request.budget_usd) as session,
        ):
            return session.answer(self.plan.answers, on_step)

    @contextmanager
    def _counting(self, have: int) -> Iterator[Callable[[Step], None]]:
        done = have
        with progress("teach", len(self.plan.answers), done=have) as advance:

            def on_step(step: Step) -> None:
                nonlocal done
                self.attempts += 1
                self.cost_usd += step.cost_usd
                done += step.is_answered
                advance(done, f"{self.cost_usd:.4f} USD")

            yield on_step

    def _say(self, status: str) -> None:
        keys = [answer.key for answer in self.plan.answers]
        costs = self.ledger.costs(keys).values()
        answers = self.ledger.find_answers(keys)
        usable = [answer for answer in answers.values() if quarantine_reason(answer.reply, self.plan.task) is None]
        say(
            {
                "prompts": len({row.prompt.prompt_id for row in self.plan.rows}),
                "answered": len(usable),
                "quarantined": len(answers) - len(usable) + sum(cost.refused for cost in costs),
                "attempts": self.attempts,
                "cost_usd": self.cost_usd,
                "total_cost_usd": sum((cost.cost_usd for cost in costs), Decimal(0)),
                "unknown_usd": sum((cost.unknown_usd for cost in costs), Decimal(0)),
                "status": status,
            },
            as_json=self.request.as_json,
        )


def _confirm(plan: TeachPlan) -> None:
    """Ask before a large bill, where somebody is there to answer."""
    bound = upper_bound_usd(plan)
    if bound <= ASK_ABOVE_USD or not sys.stdin.isatty():
        return
    answer = input(f"{len(plan.answers)} requests may cost up to {bound:.2f} USD. Go on? [y/N] ")
    if answer.strip().lower() not in {"y", "yes"}:
        raise UsageError("not confirmed: nothing was asked")
