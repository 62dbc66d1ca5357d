"""Every attempt, claim and reservation, in SQL."""

from potstill.ledger.entries import AttemptPlan, Caps, KeyCost, Settlement, Status
from potstill.ledger.ledger import Ledger, open_ledger

__all__ = ["AttemptPlan", "Caps", "KeyCost", "Ledger", "Settlement", "Status", "open_ledger"]
