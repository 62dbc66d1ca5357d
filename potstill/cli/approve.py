"""`potstill approve`."""

from typing import Annotated

from cyclopts import Parameter

from potstill.cli.console import AsJson, say
from potstill.errors import ReleaseError


def approve(
    name: Annotated[str, Parameter(name="RECIPE", negative="")],
    /,
    *,
    by: str,
    reason: str,
    reject: Annotated[bool, Parameter(negative="")] = False,
    as_json: AsJson = False,
) -> int:
    """Say the word that a student awaits which passed its gate: it is released, with who said so and why.

    A run that is suspended on a Prefect server is answered on its page; this is for runs by hand, and for those that nobody
    answered in time.

    Args:
        name: The recipe's name, or the path of a run.json: its latest run.
        by: Who approves; it goes into the release's lineage.
        reason: Why; it goes into the release's lineage.
        reject: Keep it out of service, and say so in its report.
    """
    from datetime import UTC, datetime

    from potstill import release_stage
    from potstill.approval import Approval
    from potstill.artifacts import open_store
    from potstill.report.run_report import write_report
    from potstill.run_record import find_record

    store = open_store()
    run = find_record(store.root, name)
    found = write_report(run, store)
    if found.verdict != "passed" or not run.awaits_approval:
        raise ReleaseError(f"approve {name}: its latest run awaits no approval: {found.headline}")
    word = Approval(is_approved=not reject, approver=by, reason=reason, at=datetime.now(UTC))
    answered = run.model_copy(update={"approval": word})
    summary = write_report(answered.model_copy(update={"release": release_stage.publish(answered, store)}), store)
    shown = {"headline": summary.headline, "release": summary.release, "report": summary.report}
    say(shown, as_json=as_json)
    return 0
