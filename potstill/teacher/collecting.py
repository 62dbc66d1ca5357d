"""The results of a provider's batch become settlements; whoever is cut off in the middle goes on where it stopped."""

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from decimal import Decimal

from potstill.errors import NotAuthorisedError, PermanentTeacherError
from potstill.ledger import Ledger, Settlement, Status
from potstill.ledger.batches import BatchedAttempt, BatchRow
from potstill.llm.batches.base import BatchResult, BatchState, ResultsGoneError, custom_id
from potstill.llm.messages import Reply
from potstill.llm.providers.base import Failure
from potstill.teacher.doubts import MANY
from potstill.teacher.outcome import Step, refusal, status_of

NO_MORE = frozenset({"authorisation", "billing"})
GROUP = 500
"""So many results are settled together."""


async def close_batch(
    ledger: Ledger, row: BatchRow, results: AsyncIterator[BatchResult], run: str
) -> AsyncIterator[Step]:
    """Settle what a batch that has ended brought; yields what each group of results adds to a run.

    A request without a result was not carried out. Where a line could not be read, it may be that request's, and its
    cost is unknown. Errors: `ResultsGoneError`, once what came before it is settled. Once all is settled:
    `NotAuthorisedError` where key or account refuse what is asked, `PermanentTeacherError` where every request was
    refused, in words that name no fault of a prompt; none of these counts as refused then. Nor do many that were refused
    in the same such words beside others that were answered: a limit that is met in the middle of a batch looks so.
    """
    waiting = {custom_id(row.token, it.plan.answer_key[:32]): it for it in ledger.in_batch(row.token)}
    unreadable = num_results = 0
    doubtful: list[Settlement] = []
    stopped_by: Failure | None = None
    group: list[Settlement] = []
    try:
        async for result in results:
            attempt = waiting.pop(result.custom_id, None)
            num_results += bool(result.custom_id)
            if attempt is None:
                unreadable += not result.custom_id
                continue
            if isinstance(result.outcome, Failure) and result.outcome.cause in NO_MORE:
                stopped_by = result.outcome
            settled = _settlement(attempt, result)
            (doubtful if _is_doubtful(settled.status, result.outcome) else group).append(settled)
            if len(group) == GROUP:
                yield _settle(ledger, group, run)
                group = []
    except ResultsGoneError:  # one of two files: what the other brought is paid for
        yield _settle(ledger, group, run)
        raise
    status: Status = "unknown" if unreadable else "failed"
    group += [Settlement(*attempt, status, error="the batch ended without a result") for attempt in waiting.values()]
    refuses_all = len(doubtful) == num_results >= MANY
    said = Counter(settled.error for settled in doubtful)
    group += [it._replace(status="failed") if refuses_all or said[it.error] >= MANY else it for it in doubtful]
    for some in _in_groups(group):
        yield _settle(ledger, some, run)
    ledger.update_batch(row.token, "ended")
    if stopped_by is not None:
        raise NotAuthorisedError(f"{row.base_url}: {stopped_by.message}: mend that, then run the same again")
    if refuses_all:
        raise PermanentTeacherError(refusal(row.base_url, doubtful[0].error or ""))


def _is_doubtful(status: Status, outcome: Reply | Failure) -> bool:
    """Whether a request was refused, and nothing says that its prompt is at fault."""
    return status == "refused" and isinstance(outcome, Failure) and not outcome.is_prompts_own


def close_unsubmitted(ledger: Ledger, row: BatchRow) -> None:
    """Close a batch that the provider does not have."""
    close_token(ledger, row.token, "the batch never reached the provider")


def close_lost(ledger: Ledger, row: BatchRow, error: str) -> None:
    """Close a batch that the provider has had and knows no more: nobody can say what it cost."""
    _close(ledger, row.token, [Settlement(*it, "unknown", error=error) for it in ledger.in_batch(row.token)])


def close_rejected(ledger: Ledger, row: BatchRow, state: BatchState, at_fault: Collection[str]) -> None:
    """Close a batch that the provider took none of; nothing was billed. The answer keys at fault are refused for good.

    Errors: what the rejection means for the run, unless single requests are at fault, or there is no room for now.
    """
    rejection = state.rejection
    assert rejection is not None
    close_token(ledger, row.token, rejection.message, at_fault)
    if at_fault or rejection.cause in {"rate_limit", "transient"}:
        return
    said = f"{row.base_url}: {rejection.message}"
    raise (NotAuthorisedError if rejection.cause in {"authorisation", "billing"} else PermanentTeacherError)(said)


def close_token(ledger: Ledger, token: str, error: str, at_fault: Collection[str] = ()) -> None:
    """Close a batch that was not carried out. The answer keys at fault are refused for good."""
    closed = [
        Settlement(*attempt, "refused" if attempt.plan.answer_key in at_fault else "failed", error=error)
        for attempt in ledger.in_batch(token)
    ]
    _close(ledger, token, closed)


def _close(ledger: Ledger, token: str, settlements: list[Settlement]) -> None:
    for group in _in_groups(settlements):
        ledger.write(group, [])
    ledger.update_batch(token, "ended")


def _in_groups(settlements: list[Settlement]) -> Iterator[list[Settlement]]:
    """A statement takes 65,535 parameters in PostgreSQL, and a batch holds more requests."""
    for start in range(0, len(settlements), GROUP):
        yield settlements[start : start + GROUP]


def _settle(ledger: Ledger, group: list[Settlement], run: str) -> Step:
    ledger.write(group, [])
    mine = [settlement for settlement in group if settlement.plan.run == run]
    return Step(
        attempts=len(mine),
        answered=sum(settlement.status == "answered" for settlement in mine),
        cost_usd=sum((settlement.cost_usd for settlement in mine), Decimal(0)),
    )


def _settlement(attempt: BatchedAttempt, result: BatchResult) -> Settlement:
    outcome = result.outcome
    is_reply = isinstance(outcome, Reply)
    return Settlement(
        *attempt,
        status=status_of(result.outcome, may_be_billed=result.may_be_billed),
        reply=outcome if is_reply else None,
        usage=outcome.usage,
        http_status=result.http_status,
        error=None if is_reply else outcome.message,
    )
