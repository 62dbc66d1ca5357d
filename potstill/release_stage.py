"""Release as a stage: a passed decision makes the student a version, and the champion of its recipe."""

from potstill import release
from potstill.approval import needs_word
from potstill.artifacts import ArtifactRef, ArtifactStore, digest_files
from potstill.evaluation.generate import Adapter, Answerer
from potstill.evaluation.report import read_arm_answers, read_arms, read_report, read_scores
from potstill.gate import CANDIDATE, CHAMPION
from potstill.gate_stage import read_decision
from potstill.recipe import Recipe, Student
from potstill.records import Prompt, read_parquet
from potstill.release import GOLDEN_PROMPTS, Golden, Release, Rival, Version
from potstill.run_record import RunRecord
from potstill.student.base import resolve_base


def publish(run: RunRecord, store: ArtifactStore) -> Release | None:
    """Publish a run's student with golden prompts out of the test split: what it answered correctly when it was evaluated.

    None where its gate did not pass, where it needs an approval that is not there, and where somebody said no.
    Errors: as `potstill.release.publish`, such as where another champion serves than it was compared with.
    """
    decision, recipe = read_decision(store.path(run.decision)), run.recipe
    is_let_in = run.approval.is_approved if run.approval is not None else not needs_word(recipe)
    if decision.verdict != "passed" or not is_let_in:
        return None
    right = {
        line.prompt_id for line in read_scores(store.path(run.evaluation)) if line.arm == CANDIDATE and line.score == 1
    }
    given = read_arm_answers(store.path(read_arms(store.path(run.evaluation))[CANDIDATE]))
    asked = read_parquet(store.path(run.prompts) / "prompts.parquet", Prompt)
    chosen = sorted((row for row in asked if row.prompt_id in right), key=lambda row: row.prompt_id)[:GOLDEN_PROMPTS]
    golden = [
        Golden(messages=row.messages, tools=row.tools, expected=given[row.prompt_id].completion) for row in chosen
    ]
    return release.publish(
        store.root,
        recipe.name,
        store.path(run.student),
        base=resolve_base(recipe.student, store),
        decision=decision,
        golden=golden,
        max_tokens=recipe.evaluation.max_tokens,
        approval=run.approval,
        rival=_rival_of(run.evaluation, store),
    )


def is_served(run: RunRecord, store: ArtifactStore) -> bool:
    """Whether the run's student, by whichever run, is the champion."""
    champion = release.aliases(store.root, run.recipe.name).champion
    return champion is not None and champion_of(run.recipe, run.student, store) is None


def champion_of(recipe: Recipe, candidate: ArtifactRef, store: ArtifactStore) -> str | None:
    """The version that serves now, by its name; None where none does, or where it is the candidate itself."""
    champion = release.aliases(store.root, recipe.name).champion
    if champion is None:
        return None
    version = release.resolve(store.root, f"{recipe.name}@{champion}")
    is_itself = release.adapter_files(version) == digest_files(store.path(candidate) / release.ADAPTER)
    return None if is_itself else version.name


def _rival_of(evaluation: ArtifactRef, store: ArtifactStore) -> Rival | None:
    """Whom the candidate was compared with; None where the evaluation does not know."""
    arm = next((arm for arm in read_report(store.path(evaluation)).arms if arm.arm == CHAMPION), None)
    if arm is None:
        return Rival(None)
    return None if arm.answered_by is None else Rival(arm.answered_by)


def answerer_of(version: Version, store: ArtifactStore) -> Answerer:
    """A released version, to generate with: its adapter on its own base, whatever a recipe names now."""
    directory = release.version_directory(store.root, version) / release.ADAPTER
    return Answerer(
        student=Student(base=version.base_location, revision=version.base_revision),
        adapter=Adapter(directory=str(directory), digest=version.adapter_digest, teacher_terms=version.teacher_terms),
    )
