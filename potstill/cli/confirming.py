"""The question before a large bill, for who sits at a terminal."""

import sys

from potstill.artifacts import open_store
from potstill.cli.estimating import allowances, count_with_progress, curate_prompts
from potstill.cli.teaching import ASK_ABOVE_USD
from potstill.errors import UsageError
from potstill.ledger import Ledger
from potstill.llm.pricing import Processing
from potstill.recipe import Recipe, Teacher
from potstill.report.page import format_usd
from potstill.teacher.estimate import Cost, Missing, estimate_cost
from potstill.teacher.plan import rates_of
from potstill.teacher.sharing import plan_of
from potstill.teacher.smoke import pick_rows, read_sample

SMOKE_PROMPTS = 16
"""Where `potstill estimate` has asked these, the question gives an expected cost."""


def confirm_spending(recipe: Recipe) -> None:
    """Ask on standard error where the missing answers may cost more than `ASK_ABOVE_USD` and the budget admits that.

    What they may cost is the upper end of the interval where an estimate was made before, else the upper bound. It curates as the run itself would, which then finds it done. Errors: `UsageError` for any answer but yes.
    """
    store = open_store()
    plan, ledger = plan_of(recipe, curate_prompts(recipe, store)), Ledger()
    missing = count_with_progress(plan, ledger)
    sample = read_sample(plan, ledger, pick_rows(len(plan.rows), SMOKE_PROMPTS))
    rates = rates_of(recipe.teacher, _dearest_mode(recipe.teacher))
    cost = estimate_cost(sample.prompts, missing, rates, plan.teacher.max_tokens)
    left = min((row.left_usd for row in allowances(recipe, plan, ledger)), default=cost.bound_usd)
    ledger.close()
    likely = cost.bound_usd if cost.high_usd is None else cost.high_usd
    if min(likely, left) <= ASK_ABOVE_USD:
        return
    within = f"; the budget admits {format_usd(left)}" if left < cost.bound_usd else ""
    print(f"{_describe(cost, missing)}{within}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise UsageError("not confirmed: nothing was asked")


def _describe(cost: Cost, missing: Missing) -> str:
    what = f"{missing.answers:,} answers are missing and may cost up to {format_usd(cost.bound_usd)}"
    if cost.expected_usd is None:
        return f"{what} (`potstill estimate` tells more for the price of {SMOKE_PROMPTS} prompts)"
    interval = (
        "" if cost.low_usd is None else f", 95 % interval {format_usd(cost.low_usd)} – {format_usd(cost.high_usd)}"
    )
    return f"{what}; expected are {format_usd(cost.expected_usd)}{interval}"


def _dearest_mode(teacher: Teacher) -> Processing:
    """What a batch leaves without an answer may cost the full price."""
    return "batch" if teacher.mode == "batch" and not teacher.stragglers_online else "online"
