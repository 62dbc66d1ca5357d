"""What a run says when its budget is used up."""

from decimal import Decimal

from potstill.ledger import AttemptPlan, Caps, Ledger
from potstill.ledger.spend import add_up
from potstill.teacher.plan import TeachPlan


def describe_cap(plan: TeachPlan, ledger: Ledger, attempt: AttemptPlan, caps: Caps) -> str:
    """Which cap does not admit an attempt, how far the run came, and what the rest would cost."""
    name, account, cap = "run_usd", attempt.run, caps.run_usd
    if cap is None or _fits(ledger, account, cap, attempt.bound_usd):
        assert attempt.month is not None
        assert caps.month_usd is not None
        name, account, cap = "month_usd", attempt.month, caps.month_usd
    committed = ledger.account(account).committed_usd
    return (
        f"budget {name} {usd(cap)} USD reached: {usd(committed)} USD are spent or reserved and the next request may cost "
        f"{usd(attempt.bound_usd)}. {describe_rest(plan, ledger)}What was answered is kept: "
        "raise the cap and run the same again"
    )


def describe_rest(plan: TeachPlan, ledger: Ledger) -> str:
    """How many answers of a plan its run has got, and what the others may cost, judged by those."""
    spent = add_up(ledger.spend(plan.run))
    if not spent.answered:
        return ""
    missing = max(plan.num_answers - spent.answered, 0)
    rest = spent.estimate_usd / spent.answered * missing
    return f"{spent.answered:,} of {plan.num_answers:,} answered in this run; the rest may cost about {rest:.2f} USD. "


def usd(amount: Decimal) -> str:
    """Without trailing zeros."""
    return f"{amount.normalize():f}"


def _fits(ledger: Ledger, account: str, cap: Decimal, bound: Decimal) -> bool:
    return ledger.account(account).committed_usd + bound <= cap
