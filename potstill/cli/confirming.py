"""Whether a bill is large enough to ask who sits at a terminal before it."""

import math
from contextlib import closing
from decimal import Decimal

from potstill.artifacts import open_store
from potstill.cli.estimating import allowances, count_with_progress, curate_prompts
from potstill.cli.questions import ask_to_go_on
from potstill.ledger import Caps, Ledger
from potstill.llm.pricing import Processing, Rates
from potstill.recipe import Recipe, Teacher
from potstill.report.page import format_usd
from potstill.teacher.estimate import Cost, Missing, bound_usd, estimate_cost
from potstill.teacher.plan import TeachPlan, rates_of
from potstill.teacher.sharing import caps_of, plan_of
from potstill.teacher.smoke import pick_rows, read_sample

ASK_ABOVE_USD = Decimal(10)
SMOKE_PROMPTS = 16
"""Where `potstill estimate` has asked these, the question gives an expected cost."""


def confirm_run(recipe: Recipe) -> None:
    """Ask before a run where `confirm_spending` would. It curates as the run itself does, which then finds it done."""
    plan = plan_of(recipe, curate_prompts(recipe, open_store()))
    with closing(Ledger()) as ledger:
        confirm_spending(plan, ledger, caps_of(recipe))


def confirm_spending(plan: TeachPlan, ledger: Ledger, caps: Caps) -> None:
    """Ask where the missing answers may cost more than `ASK_ABOVE_USD` and the budget admits that.

    What they may cost is the upper end of the interval where an estimate was made before, else the upper bound.
    Errors: `UsageError` for any answer but yes.
    """
    missing = count_with_progress(plan, ledger)
    sample = read_sample(plan, ledger, pick_rows(len(plan.rows), SMOKE_PROMPTS))
    rates = rates_of(plan.teacher, _dearest_mode(plan.teacher))
    cost = estimate_cost(sample.prompts, missing, rates, plan.teacher.max_tokens)
    most = cost.bound_usd + _further_samples_usd(missing, rates, plan.teacher)
    left = min((row.left_usd for row in allowances(plan, ledger, caps)), default=most)
    likely = most if cost.high_usd is None else cost.high_usd
    if min(likely, left) <= ASK_ABOVE_USD:
        return
    within = f"; the budget admits {format_usd(left)}" if left < most else ""
    ask_to_go_on(f"{_describe(cost, most, missing, is_recipe=plan.recipe is not None)}{within}")


def _describe(cost: Cost, most: Decimal, missing: Missing, *, is_recipe: bool) -> str:
    what = f"{missing.answers:,} answers are missing and may cost up to {format_usd(most)}"
    if cost.expected_usd is None:
        more = f" (`potstill estimate` tells more for the price of {SMOKE_PROMPTS} prompts)"
        return what + (more if is_recipe else "")
    interval = (
        "" if cost.low_usd is None else f", 95 % interval {format_usd(cost.low_usd)} – {format_usd(cost.high_usd)}"
    )
    return f"{what}; expected are {format_usd(cost.expected_usd)}{interval}"


def _further_samples_usd(missing: Missing, rates: Rates, teacher: Teacher) -> Decimal:
    """What `quality_retries` may add: the next sample of every prompt, each with twice the room for every one cut off."""
    prompts = Missing(*(math.ceil(number / teacher.samples) for number in missing))
    cut_off = range(teacher.samples, teacher.samples + teacher.quality_retries)
    return sum((bound_usd(prompts, rates, teacher.max_tokens * 2**times) for times in cut_off), Decimal(0))


def _dearest_mode(teacher: Teacher) -> Processing:
    """What a batch leaves without an answer may cost the full price."""
    return "batch" if teacher.mode == "batch" and not teacher.stragglers_online else "online"
