"""What a run has spent so far: a table in Prefect's UI that grows while it runs."""

from prefect.artifacts import create_table_artifact

from potstill.ledger import Caps, Ledger
from potstill.ledger.spend import by_model
from potstill.teacher.plan import TeachPlan

EVERY_SECONDS = 10.0


def show_spend(plan: TeachPlan, ledger: Ledger, caps: Caps) -> None:
    """Attempts, tokens and cost of the plan's run, by purpose and model, beside its caps."""
    month = plan.month()
    accounts = [("run", plan.run, caps.run_usd)] + ([] if month is None else [("month", month, caps.month_usd)])
    committed = ", ".join(
        f"{name}: {ledger.account(account).committed_usd:.4f} USD of {'no cap' if cap is None else f'{cap:f}'}"
        for name, account, cap in accounts
    )
    rows = [row.model_dump(mode="json") for row in by_model(ledger.spend(plan.run))]
    create_table_artifact(rows, key="spend", description=f"What this run has paid for. Spent and reserved: {committed}")
