"""The work behind `potstill estimate`: asks a smoke, and works out what the rest will cost."""

from contextlib import closing
from decimal import Decimal

from potstill.artifacts import ArtifactRef, ArtifactStore, open_store
from potstill.cli.console import how_it_ended, progress
from potstill.cli.curate import curation_progress
from potstill.cli.estimate_report import Allowance, CostReport, MachineCost, SmokeReport, show_report
from potstill.curation import curate as curation
from potstill.errors import PotstillError, TransientTeacherError
from potstill.ledger import Caps, Ledger
from potstill.llm.pricing import Processing, Rates
from potstill.machine_time import MachineTime, expect_times
from potstill.preflight import check
from potstill.recipe import Recipe
from potstill.teacher.estimate import Missing, estimate_cost, estimate_tokens
from potstill.teacher.outcome import Step
from potstill.teacher.plan import TeachPlan, rates_of
from potstill.teacher.sharing import caps_of, plan_of
from potstill.teacher.smoke import Sample, ask_smoke, count_missing, count_missing_of, pick_rows, read_sample
from potstill.teacher.unfinished import has_open_batches

HOUR_SECONDS = 3600
AT_THE_PROVIDER = (
    "a batch is at the provider: nothing was asked. Its answers count as missing until a run collects them"
)


def run_estimate(recipe: Recipe, smoke: int, *, as_json: bool) -> int:
    """Ask and show; returns the exit code. Errors: those of the smoke, after what is known was shown."""
    check(recipe)
    with closing(Ledger()) as ledger:
        return _Estimating(recipe, smoke, ledger, as_json=as_json).run()


def curate_prompts(recipe: Recipe, store: ArtifactStore) -> ArtifactRef:
    """The prompt set as the flow would make it, or has. Errors: `DataError` as in the flow."""
    with curation_progress(recipe.curation.inputs) as advance:
        prompts = curation.curate(
            recipe.curation, recipe.task.kind, store, on_progress=advance, recipe_fingerprint=recipe.fingerprint
        )
    curation.check_splits(curation.read_summary(store.path(prompts)))
    return prompts


def count_with_progress(plan: TeachPlan, ledger: Ledger) -> Missing:
    """What the ledger lacks of a plan, with a bar while the prompts are read."""
    with progress("measure", len(plan.rows)) as advance:
        return count_missing(plan, ledger, advance)


def allowances(plan: TeachPlan, ledger: Ledger, caps: Caps) -> list[Allowance]:
    """What is left of each cap."""
    named = (("run_usd", plan.run, caps.run_usd), ("month_usd", plan.month(), caps.month_usd))
    return [
        Allowance(name=name, cap_usd=cap, left_usd=max(Decimal(0), cap - ledger.account(account).committed_usd))
        for name, account, cap in named
        if account is not None and cap is not None
    ]


class _Estimating:
    def __init__(self, recipe: Recipe, smoke: int, ledger: Ledger, *, as_json: bool) -> None:
        self.recipe = recipe
        self.as_json = as_json
        self.store = open_store()
        self.prompts = curate_prompts(recipe, self.store)
        self.plan = plan_of(recipe, self.prompts)
        self.ledger = ledger
        self.rows = pick_rows(len(self.plan.rows), smoke)
        self.asked = Step()

    def run(self) -> int:
        missing = count_with_progress(self.plan, self.ledger)
        before = count_missing_of(self.plan, self.ledger, self.rows)
        rest = missing.minus(before)
        is_at_the_provider = has_open_batches(self.plan, self.ledger)
        try:
            if not is_at_the_provider:
                self._ask()
        except (PotstillError, KeyboardInterrupt) as error:
            self._show(how_it_ended(error), rest)
            raise
        sample = read_sample(self.plan, self.ledger, self.rows)
        unanswered = len(self.rows) - len(sample.prompts)
        if unanswered and not is_at_the_provider:
            self._show("incomplete", rest)
            raise TransientTeacherError(
                f"{unanswered} of {len(self.rows)} prompts have no answer yet: run the same again to ask only for them"
            )
        self._show("done", rest, AT_THE_PROVIDER if is_at_the_provider else "")
        return 0

    def _ask(self) -> None:
        def on_step(step: Step) -> None:
            self.asked = self.asked.plus(step)
            advance(self.asked.found + self.asked.answered, self.asked.describe(), before=self.asked.found)

        with progress("smoke", len(self.rows) * self.plan.teacher.samples) as advance:
            ask_smoke(self.plan, self.ledger, caps_of(self.recipe), self.rows, on_step)

    def _show(self, status: str, rest: Missing, note: str = "") -> None:
        """What is known by now; `rest` is what is missing of the rows outside the smoke."""
        missing = rest.plus(count_missing_of(self.plan, self.ledger, self.rows))
        sample = read_sample(self.plan, self.ledger, self.rows)
        rates: dict[Processing, Rates] = {name: rates_of(self.recipe.teacher, name) for name in ("online", "batch")}
        longest = self.plan.teacher.max_tokens
        summary = curation.read_summary(self.store.path(self.prompts))
        times = expect_times(self.recipe, self.prompts, summary, self.store)
        report = CostReport(
            recipe=self.recipe.name,
            status=status,
            mode=self.recipe.teacher.mode,
            prompts=len(self.plan.rows),
            answers=self.plan.num_answers,
            missing=missing.answers,
            smoke=self._smoke(sample),
            tokens=estimate_tokens(sample.prompts, missing),
            teacher={name: estimate_cost(sample.prompts, missing, of, longest) for name, of in rates.items()},
            prices={name: of.source for name, of in rates.items()},
            judge=None,
            base_outputs=self._machine_cost(times.base_outputs),
            training=self._machine_cost(times.training),
            budget=allowances(self.plan, self.ledger, caps_of(self.recipe)),
            note=note,
        )
        show_report(report, as_json=self.as_json)

    def _smoke(self, sample: Sample) -> SmokeReport:
        return SmokeReport(
            prompts=len(self.rows),
            answered=len(sample.prompts),
            asked=self.asked.attempts,
            cost_usd=self.asked.cost_usd,
            answers=sample.answers,
            quarantined=sum(sample.reasons.values()),
            reasons=sample.reasons,
            attempts=sample.attempts,
            wasted=sample.wasted,
        )

    def _machine_cost(self, time: MachineTime) -> MachineCost:
        per_hour = self.recipe.serving.usd_per_hour
        seconds = None if time.seconds is None else Decimal(f"{time.seconds:.3f}")
        usd = None if seconds is None else seconds * per_hour / HOUR_SECONDS
        return MachineCost(cost_usd=usd, seconds=time.seconds, how=time.how)
