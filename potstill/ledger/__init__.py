"""Every attempt, claim and reservation, in SQL."""

from potstill.ledger.entries import AttemptPlan, Caps, KeyCost, Settlement, Status
from potstill.ledger.ledger import Ledger

__all__ = ["AttemptPlan", "Caps", "KeyCost", "Ledger", "Settlement", "Status"]
