"""What of a plan is still to be done."""

from collections.abc import Iterable

from potstill.ledger import Ledger
from potstill.llm.providers import base_url_of
from potstill.teacher.mending import in_order, retries_wanted
from potstill.teacher.plan import TeachPlan, split_batches

HELD_ELSEWHERE = "a batch at another address holds it: collect that with the recipe that handed it in"


def open_batches(plan: TeachPlan, ledger: Ledger) -> list[int]:
    """The indexes of the batches of which the ledger lacks an answer, or a further one in place of a bad one."""
    batches = split_batches(plan)
    return [index for index, batch in enumerate(batches) if _is_open(plan, ledger, batch)]


def _is_open(plan: TeachPlan, ledger: Ledger, batch: range) -> bool:
    for chunk in plan.chunks(batch.start, batch.stop):
        if ledger.look_up(answer.key for answer in chunk).missing:
            return True
        further = [answer.key for answer in retries_wanted(plan, ledger, chunk)]
        if further and ledger.look_up(further).missing:
            return True
    return False


def has_open_batches(plan: TeachPlan, ledger: Ledger) -> bool:
    """Whether the provider works at a batch that holds some of these answers."""
    if not ledger.open_batches(plan.teacher.provider, base_url_of(plan.teacher)):
        return False
    return any(ledger.batches_holding(answer.key for answer in chunk) for chunk in in_order(plan, ledger))


def count_at_provider(plan: TeachPlan, ledger: Ledger) -> int:
    """The requests in batches that hold some of these answers and have not been collected."""
    rows = ledger.open_batches(plan.teacher.provider, base_url_of(plan.teacher))
    if not rows:
        return 0
    ours: set[str] = set()
    for chunk in in_order(plan, ledger):
        ours |= ledger.batches_holding(answer.key for answer in chunk)
    return sum(row.num_requests for row in rows if row.token in ours)


def is_held_elsewhere(plan: TeachPlan, ledger: Ledger) -> bool:
    """Whether batches at another address, which nobody collects here, hold some of what is missing, and none here does."""
    at_provider = {row.token for row in ledger.open_batches(plan.teacher.provider, base_url_of(plan.teacher))}
    holding: set[str] = set()
    for chunk in in_order(plan, ledger):
        holding |= ledger.batches_holding(answer.key for answer in chunk)
    return bool(holding) and not holding & at_provider


def are_at_provider(plan: TeachPlan, ledger: Ledger, keys: Iterable[str]) -> bool:
    """Whether a batch at the plan's endpoint holds some of these."""
    at_provider = {row.token for row in ledger.open_batches(plan.teacher.provider, base_url_of(plan.teacher))}
    return bool(at_provider & ledger.batches_holding(keys))
