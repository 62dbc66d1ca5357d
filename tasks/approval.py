"""Approval: a student that passed waits for somebody's word, where recipe or operator ask for it; no worker is held meanwhile."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from prefect.exceptions import PrefectHTTPStatusError
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.input.actions import delete_flow_run_input, read_flow_run_input
from prefect.input.run_input import keyset_from_base_key
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from pydantic import Field

from potstill.approval import Approval, Said, needs_word
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
    after an upgrade, it asks again. After `gate.approval_hours` Prefect fails it. A word that was given counts, also where it
    would no longer be asked for. A run by hand has no page: `potstill approve` says the word later.
    """
    is_asked, store = needs_word(run.recipe), open_store()
    if read_decision(store.path(run.decision)).verdict != "passed":
        return None
    if deployment.id is None:
        if is_asked:
            get_run_logger().warning("%s", report(run).headline)
        return None
    key = f"approval-{run.decision.digest[:12]}"
    word = _said_before(key) or (_ask(run, key) if is_asked else None)
    if word is None:
        return None
    return Approval(
        is_approved=word.verdict == "approve", approver=word.approver, reason=word.reason, at=datetime.now(UTC)
    )


def _ask(run: RunRecord, key: str) -> Word:
    _forget_question(key)
    shown = report(run.model_copy(update={"asked_in": str(flow_run.id)}))
    form = Word.with_initial_data(description=f"{shown.describe()}\n{ASKED}")
    with set_aside():
        word = suspend_flow_run(wait_for_input=form, timeout=round(run.recipe.gate.approval_hours * 3600), key=key)
    assert isinstance(word, Word)
    return word


def _said_before(key: str) -> Word | None:
    """What a run was told that crashed after it, and is retried: it asks nobody twice."""
    said = read_flow_run_input(keyset_from_base_key(f"suspended-{key}")["response"])
    return None if said is None else Word.model_validate(said)


def _forget_question(key: str) -> None:
    """What is left of a question that nobody answered goes: Prefect refuses to ask under the same key again."""
    keys = keyset_from_base_key(f"suspended-{key}")
    for name in (keys["schema"], keys["description"]):
        with suppress(PrefectHTTPStatusError):
            delete_flow_run_input(name)
