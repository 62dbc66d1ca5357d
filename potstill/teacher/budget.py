"""What a run says when its budget is used up."""

from decimal import ROUND_UP, Decimal

from potstill.ledger import AttemptPlan, Caps, Ledger
from potstill.ledger.spend import add_up
from potstill.teacher.plan import TeachPlan

PRECISION = Decimal("0.0001")


def describe_cap(plan: TeachPlan, ledger: Ledger, attempt: AttemptPlan, caps: Caps) -> str:
    """Which cap does not admit an attempt, how far the run came, and what the rest would cost."""
    name, account, cap = "run_usd", attempt.run, caps.run_usd
    is_month = cap is None or _fits(ledger, account, cap, attempt.bound_usd)
    if is_month and attempt.month is not None and caps.month_usd is not None:
        name, account, cap = "month_usd", attempt.month, caps.month_usd
    assert cap is not None
    committed = ledger.account(account).committed_usd
    return (
        f"budget {name} {usd(cap)} USD reached: {usd(committed)} USD are spent or reserved and the next request may cost "
        f"{usd(attempt.bound_usd)}. {describe_rest(plan, ledger)}What was answered is kept: "
        "raise the cap and run the same again"
    )


def describe_rest(plan: TeachPlan, ledger: Ledger) -> str:
    """How many answers of a plan are missing, and what they may cost, judged by those that its run has got."""
    spent = add_up(ledger.spend(plan.run))
    missing = sum(len(ledger.look_up(answer.key for answer in chunk).missing) for chunk in plan.chunks())
    said = f"{missing:,} of {plan.num_answers:,} answers are missing"
    if not spent.answered:
        return f"{said}. "
    rest = spent.estimate_usd / spent.answered * missing
    return f"{said}; the rest may cost about {rest.quantize(PRECISION, ROUND_UP):f} USD. "


def usd(amount: Decimal) -> str:
    """Without trailing zeros."""
    return f"{amount.normalize():f}"


def _fits(ledger: Ledger, account: str, cap: Decimal, bound: Decimal) -> bool:
    return ledger.account(account).committed_usd + bound <= cap
