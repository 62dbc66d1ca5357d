"""Approval: a student that passed waits for somebody's word, where the recipe asks for it; no worker is held meanwhile."""

from datetime import UTC, datetime
from typing import Literal

from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.runtime import deployment
from pydantic import Field

from potstill.approval import Approval, Said
from potstill.artifacts import open_store
from potstill.gate_stage import read_decision
from potstill.run_record import RunRecord
from tasks.reporting import report
from tasks.waiting import set_aside

ASKED = "**Does this student serve from now on?** Read the report first; its answers stand beside the teacher's there."


class Word(RunInput):
    """The form on the page of the suspended run."""

    verdict: Literal["approve", "reject"] = Field(
        description="approve: this student serves from now on. reject: nothing is released."
    )
    approver: Said = Field(description="Your name; it goes into the release's lineage.")
    reason: Said = Field(description="Why; it goes into the release's lineage.")


def ask_approval(run: RunRecord) -> Approval | None:
    """Suspend a deployed run until somebody has said approve or reject; None where nothing is asked, or nobody can be.

    The run starts again from the top, finds everything done, and goes on here; where it comes to another decision, such as
    after an upgrade, it asks again. After `gate.approval_hours` Prefect fails it.
    A run by hand has no page: `potstill approve` says the word later.
    """
    gate, store = run.recipe.gate, open_store()
    if gate.approval == "auto" or read_decision(store.path(run.decision)).verdict != "passed":
        return None
    shown = report(run)
    if deployment.id is None:
        get_run_logger().warning("%s", shown.headline)
        return None
    form = Word.with_initial_data(description=f"{shown.describe()}\n{ASKED}")
    with set_aside():
        word = suspend_flow_run(
            wait_for_input=form, timeout=round(gate.approval_hours * 3600), key=f"approval-{run.decision.digest[:12]}"
        )
    assert isinstance(word, Word)
    return Approval(
        is_approved=word.verdict == "approve", approver=word.approver, reason=word.reason, at=datetime.now(UTC)
    )
