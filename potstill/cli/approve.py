"""`potstill approve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from potstill.cli.console import AsJson, say
from potstill.errors import ReleaseError, UsageError

if TYPE_CHECKING:
    from potstill.approval import Approval

SHOWN_DIGITS = 12
"""So many digits of a digest a report shows."""


def approve(
    name: Annotated[str, Parameter(name="RECIPE", negative="")],
    /,
    *,
    by: str,
    reason: str,
    student: str | None = None,
    reject: Annotated[bool, Parameter(negative="")] = False,
    as_json: AsJson = False,
) -> int:
    """Say the word that a student awaits which passed its gate: it is released, with who said so and why.

    A run that is suspended on a Prefect server is answered on its page; this is for runs by hand, and for those that nobody
    answered in time. Where another champion serves by now than the student was compared with, it is refused.

    Args:
        name: The recipe's name, or the path of a run.json: its latest run.
        by: Who approves; it goes into the release's lineage.
        reason: Why; it goes into the release's lineage.
        student: Digest of the student that was looked at, as the report shows it; refused where the run has another.
        reject: Keep it out of service, and say so in its report.
    """
    from potstill import release_stage
    from potstill.artifacts import open_store
    from potstill.report.run_report import write_report
    from potstill.run_record import find_record

    word = word_of(by, reason, is_approved=not reject)
    store = open_store()
    run = find_record(store.root, name)
    _check_student(name, student, run.student.digest)
    found = write_report(run, store)
    if found.verdict != "passed" or not run.awaits_approval:
        raise ReleaseError(f"approve {name}: its latest run awaits no approval: {found.headline}")
    if reject and release_stage.is_served(run, store):
        raise ReleaseError(
            f"approve {name} --reject: this student serves already: `potstill rollback {run.recipe.name}` takes it out"
        )
    answered = run.model_copy(update={"approval": word})
    summary = write_report(answered.model_copy(update={"release": release_stage.publish(answered, store)}), store)
    shown = {"headline": summary.headline, "release": summary.release, "report": summary.report}
    say(shown, as_json=as_json)
    return 0


def word_of(by: str, reason: str, *, is_approved: bool = True) -> Approval:
    """Errors: `UsageError` where a flag is empty or too long."""
    from datetime import UTC, datetime

    from potstill.approval import Approval
    from potstill.cli.flags import checked

    return checked(Approval, is_approved=is_approved, approver=by, reason=reason, at=datetime.now(UTC))


def _check_student(name: str, seen: str | None, digest: str) -> None:
    if seen is None:
        return
    if len(seen) < SHOWN_DIGITS:
        raise UsageError(f"--student {seen}: give the {SHOWN_DIGITS} digits that the report shows as student")
    if not digest.startswith(seen):
        raise ReleaseError(
            f"approve {name}: the student of its latest run is {digest[:SHOWN_DIGITS]}, not {seen}: read the report of that "
            f"one first (`potstill report {name}`)"
        )
