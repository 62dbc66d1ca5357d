"""The parent flow. It reads like the recipe: one line a stage. `python -m flows RECIPE` runs it here."""

from prefect import flow
from prefect.client.schemas.objects import State

from potstill.recipe import Recipe
from potstill.report.run_report import RunSummary
from potstill.run_record import RunRecord
from tasks.assembly import assemble
from tasks.curation import curate
from tasks.evaluation import evaluate
from tasks.gating import decide
from tasks.preflight import check
from tasks.release import release
from tasks.reporting import conclude, report
from tasks.teaching import teach
from tasks.training import train


@flow(  # pyright: ignore[reportCallIssue] - same as below
    name="distill-student",
    flow_run_name="distil-{recipe.name}",
    persist_result=True,
    result_serializer="json",
)
def distill_student(recipe: Recipe) -> State[RunSummary]:
    """Distil the recipe's prompts into a student, and release it if it passes its gate.

    Started again after any crash, it finishes what is missing and pays for nothing twice.
    """
    check(recipe)
    prompts = curate(recipe)
    completions = teach(recipe, prompts)
    dataset = assemble(prompts, completions)
    student = train(recipe, prompts, dataset)
    evaluation = evaluate(recipe, prompts, completions, student)
    decision = decide(recipe, evaluation)
    version = release(recipe, prompts, student, evaluation, decision)
    summary = report(
        RunRecord(
            recipe=recipe,
            prompts=prompts,
            completions=completions,
            dataset=dataset,
            student=student,
            evaluation=evaluation,
            decision=decision,
            release=version,
        )
    )
    return conclude(summary)
