"""What a run has spent so far: a table in Prefect's UI that grows while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.exceptions import ExternalSignal
from prefect.futures import PrefectFuture, wait

from potstill.errors import LedgerError
from potstill.ledger import Ledger, open_ledger
from potstill.ledger.spend import by_model
from potstill.recipe import Recipe
from potstill.teacher.plan import TeachPlan
from potstill.teacher.sharing import caps_of, stop_sessions
from tasks.events import say_budget
from tasks.server_errors import SERVER_ERRORS

EVERY_SECONDS = 10.0


def wait_for(futures: list[PrefectFuture[Any]], plan: TeachPlan, recipe: Recipe) -> None:
    """Wait, and show meanwhile and at the end, however that comes, what is spent. An interrupt stops the spending first."""
    table = SpendTable(plan, open_ledger(), recipe)
    try:
        with spending_stops_first():
            while wait(futures, timeout=EVERY_SECONDS).not_done:
                table.show()
            for future in futures:
                future.result()
    finally:
        table.show()


@contextmanager
def spending_stops_first() -> Iterator[None]:
    """Around what starts batches and waits for them: an interrupt stops the asking before it waits for anything to end."""
    try:
        yield
    except (KeyboardInterrupt, ExternalSignal):
        stop_sessions()
        raise


class SpendTable:
    """Attempts, tokens and cost of the plan's run, by purpose and model, beside its caps; four fifths of a cap are an event."""

    def __init__(self, plan: TeachPlan, ledger: Ledger, recipe: Recipe) -> None:
        self._plan = plan
        self._ledger = ledger
        self._recipe = recipe
        self._shown: object = None

    def show(self) -> None:
        """Draw it where it has changed: each drawing is a row of the server's for good."""
        # what is only shown must not stop what is paid for, nor hide an error
        with suppress(*SERVER_ERRORS, LedgerError):
            self._show()

    def _show(self) -> None:
        caps, month = caps_of(self._recipe), self._plan.month()
        accounts = [("run", self._plan.run, caps.run_usd)] + (
            [] if month is None else [("month", month, caps.month_usd)]
        )
        committed = {account: self._ledger.account(account).committed_usd for _, account, _ in accounts}
        for _, account, cap in accounts:
            say_budget(self._recipe.name, account, committed[account], cap)
        said = "; ".join(
            f"{name} {committed[account]:.4f} USD, {'no cap' if cap is None else f'cap {cap:f} USD'}"
            for name, account, cap in accounts
        )
        rows = [row.row for row in by_model(self._ledger.spend(self._plan.run))]
        if self._shown != (said, rows):
            create_table_artifact(rows, key="spend", description=f"Spent and reserved: {said}")
            self._shown = said, rows
