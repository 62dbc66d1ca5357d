"""The parent flow. It reads like the recipe: one line a stage. `python -m flows RECIPE` runs it here."""

from prefect import flow
from prefect.client.schemas.objects import State

from potstill.recipe import Recipe
from potstill.report.run_report import RunSummary
from potstill.run_record import RunRecord
from tasks.approval import ask_approval
from tasks.assembly import assemble
from tasks.cancelling import cancel_children
from tasks.curation import curate
from tasks.evaluation import evaluate
from tasks.gating import decide
from tasks.night import take_in
from tasks.preflight import check
from tasks.release import release
from tasks.reporting import conclude, report
from tasks.run_names import name_by_hand
from tasks.teaching import teach
from tasks.training import train


@flow(  # pyright: ignore[reportCallIssue] - same as below
    name="distill-student",
    flow_run_name=name_by_hand,
    persist_result=True,
    result_serializer="json",
    on_cancellation=[cancel_children],
    on_crashed=[cancel_children],
)
def distill_student(recipe: Recipe) -> State[RunSummary]:
    """Distil the recipe's prompts into a student, and release it if it passes its gate.

    Started again after any crash, it finishes what is missing and pays for nothing twice.
    """
    check(recipe)
    return distil(take_in(recipe))


def distil(recipe: Recipe) -> State[RunSummary]:
    """The recipe, one line a stage, in whichever flow calls it; it has checked it."""
    prompts = curate(recipe)
    completions = teach(recipe, prompts)
    dataset = assemble(prompts, completions)
    student = train(recipe, prompts, dataset)
    evaluation = evaluate(recipe, prompts, completions, student)
    decision = decide(recipe, evaluation)
    run = RunRecord(
        recipe=recipe,
        prompts=prompts,
        completions=completions,
        dataset=dataset,
        student=student,
        evaluation=evaluation,
        decision=decision,
    )
    run = run.model_copy(update={"approval": ask_approval(run)})
    run = run.model_copy(update={"release": release(run)})
    return conclude(report(run))
