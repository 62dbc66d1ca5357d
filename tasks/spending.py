"""What a run has spent so far: a table in Prefect's UI that grows while it runs."""

from contextlib import suppress
from typing import Any

import httpx
from prefect.artifacts import create_table_artifact
from prefect.exceptions import ExternalSignal
from prefect.futures import PrefectFuture, wait

from potstill.errors import LedgerError
from potstill.ledger import Caps, Ledger, open_ledger
from potstill.ledger.spend import by_model
from potstill.recipe import Recipe
from potstill.teacher.plan import TeachPlan
from potstill.teacher.sharing import caps_of, stop_sessions

EVERY_SECONDS = 10.0


def wait_for(futures: list[PrefectFuture[Any]], plan: TeachPlan, recipe: Recipe) -> None:
    """Wait, and show meanwhile and at the end, however that comes, what is spent. An interrupt stops the spending first."""
    try:
        while wait(futures, timeout=EVERY_SECONDS).not_done:
            show_spend(plan, open_ledger(), caps_of(recipe))
        for future in futures:
            future.result()
    except (KeyboardInterrupt, ExternalSignal):
        stop_sessions()
        raise
    finally:
        show_spend(plan, open_ledger(), caps_of(recipe))


def show_spend(plan: TeachPlan, ledger: Ledger, caps: Caps) -> None:
    """Attempts, tokens and cost of the plan's run, by purpose and model, beside its caps."""
    with suppress(httpx.HTTPError, LedgerError):  # what is only shown must not stop what is paid for, nor hide an error
        _show(plan, ledger, caps)


def _show(plan: TeachPlan, ledger: Ledger, caps: Caps) -> None:
    month = plan.month()
    accounts = [("run", plan.run, caps.run_usd)] + ([] if month is None else [("month", month, caps.month_usd)])
    committed = ", ".join(
        f"{name}: {ledger.account(account).committed_usd:.4f} USD of {'no cap' if cap is None else f'{cap:f}'}"
        for name, account, cap in accounts
    )
    rows = [row.model_dump(mode="json") for row in by_model(ledger.spend(plan.run))]
    create_table_artifact(rows, key="spend", description=f"What this run has paid for. Spent and reserved: {committed}")
