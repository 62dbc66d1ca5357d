"""A batch that was handed in and whose id never came: found again by what it carries of ours."""

from potstill.ledger import Ledger
from potstill.ledger.batches import BatchRow
from potstill.llm.batches.base import BatchProtocol, BatchState, is_of


async def find_again(row: BatchRow, ledger: Ledger, protocol: BatchProtocol) -> BatchState | None:
    """The batch of a row without an id, as far as the provider lets us see; the ledger knows its id then.

    With `is_certain` False it runs, may be another's, and the ledger learns nothing: see `BatchProtocol.find`, whose
    errors these are.
    """
    others = ledger.known_batches()
    while True:
        found = await protocol.find(row.token, row.created_at, row.num_requests, others)
        if found is None or (found.status == "running" and not found.is_certain):
            return found
        if found.is_certain or await _is_ours(found, row.token, protocol):
            ledger.adopt_batch(row.token, found.id)
            return found._replace(is_certain=True)
        others.add(found.id)


async def _is_ours(state: BatchState, token: str, protocol: BatchProtocol) -> bool:
    """Whether the results of a batch are those of this token."""
    async for result in protocol.results(state):
        if result.custom_id:
            return is_of(token, result.custom_id)
    return False
