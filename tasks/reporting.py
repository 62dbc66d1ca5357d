"""Reporting: everything that a run made → one HTML page, and the state in which the run ends."""

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from potstill.artifacts import open_store
from potstill.report.run_report import RunSummary, write_report
from potstill.run_record import RunRecord
from tasks.events import say_released

PAGE = "The page with verdict, costs, curve, disagreements and lineage"
NOT_PASSED = {"rejected": "GateRejected", "undecided": "GateUndecided"}


@task(cache_policy=NO_CACHE, result_serializer="json")
def report(run: RunRecord) -> RunSummary:
    """The run's page and its figures; written again each time, from what is kept."""
    summary = write_report(run, open_store())
    create_markdown_artifact(summary.describe(), key="summary", description=summary.headline)
    create_link_artifact(summary.link, key="report", link_text="report.html", description=f"{PAGE} of {summary.recipe}")
    if summary.release is not None and summary.is_served:
        say_released(summary.recipe, summary.release, summary.verdict, summary.headline)
    return summary


def conclude(summary: RunSummary) -> State[RunSummary]:
    """The state of the run: what is not released ends a good run under a name of its own."""
    return Completed(name=_state_name(summary), message=summary.headline, data=summary)


def _state_name(summary: RunSummary) -> str:
    if summary.verdict in NOT_PASSED:
        return NOT_PASSED[summary.verdict]
    if summary.release is not None:
        return "Completed"
    return "AwaitsApproval" if summary.approval is None else "NotApproved"
