"""What a run has spent so far: a table in Prefect's UI that grows while it runs."""

from contextlib import suppress
from typing import Any

import httpx
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

EVERY_SECONDS = 10.0


def wait_for(futures: list[PrefectFuture[Any]], plan: TeachPlan, recipe: Recipe) -> None:
    """Wait, and show meanwhile and at the end, however that comes, what is spent. An interrupt stops the spending first."""
    try:
        while wait(futures, timeout=EVERY_SECONDS).not_done:
            show_spend(plan, open_ledger(), recipe)
        for future in futures:
            future.result()
    except (KeyboardInterrupt, ExternalSignal):
        stop_sessions()
        raise
    finally:
        show_spend(plan, open_ledger(), recipe)


def show_spend(plan: TeachPlan, ledger: Ledger, recipe: Recipe) -> None:
    """Attempts, tokens and cost of the plan's run, by purpose and model, beside its caps; four fifths of a cap are an event."""
    with suppress(httpx.HTTPError, LedgerError):  # what is only shown must not stop what is paid for, nor hide an error
        _show(plan, ledger, recipe)


def _show(plan: TeachPlan, ledger: Ledger, recipe: Recipe) -> None:
    caps, month = caps_of(recipe), plan.month()
    accounts = [("run", plan.run, caps.run_usd)] + ([] if month is None else [("month", month, caps.month_usd)])
    committed = "; ".join(
        f"{name} {ledger.account(account).committed_usd:.4f} USD, {'no cap' if cap is None else f'cap {cap:f} USD'}"
        for name, account, cap in accounts
    )
    for _, account, cap in accounts:
        say_budget(recipe.name, account, ledger.account(account).committed_usd, cap)
    rows = [row.row for row in by_model(ledger.spend(plan.run))]
    create_table_artifact(rows, key="spend", description=f"Spent and reserved: {committed}")
