"""Scores the arms of an evaluation and keeps what was found: the `EvalReport` artefact."""

from collections.abc import Mapping
from pathlib import Path

import orjson
from pydantic import ValidationError

from potstill.artifacts import ArtifactRef, ArtifactStore, StageKey
from potstill.errors import DataError
from potstill.evaluation.metrics import EvalReport, ScoreLine, evaluate_arms
from potstill.fingerprint import fingerprint
from potstill.recipe import Task
from potstill.records import Completion, Prompt, best_samples, read_jsonl, read_parquet, write_jsonl
from potstill.scorers import scorer_identity

STAGE = "evaluate"
VERSION = 3
KIND = "EvalReport"
REPORT = "report.json"
SCORES = "scores.jsonl"
ARMS = "arms.json"


def score_key(task: Task, prompts: ArtifactRef, arms: Mapping[str, ArtifactRef]) -> StageKey:
    """The key of an evaluation: the task, the prompts, what each arm answered, and the version of a scorer of the user's."""
    digests = {name: ref.digest for name, ref in arms.items()}
    return StageKey(STAGE, VERSION, fingerprint([task, prompts.digest, digests, scorer_identity(task)]))


def score_arms(task: Task, prompts: ArtifactRef, arms: Mapping[str, ArtifactRef], store: ArtifactStore) -> ArtifactRef:
    """Score each arm's completions on the test split. Errors: `DataError` where the test split is empty."""

    def produce(directory: Path) -> int:
        asked = read_parquet(store.path(prompts) / "prompts.parquet", Prompt)
        answers = {name: read_arm_answers(store.path(ref)) for name, ref in arms.items()}
        (directory / ARMS).write_bytes(orjson.dumps({name: ref.model_dump() for name, ref in arms.items()}))
        return write_evaluation(task, [prompt for prompt in asked if prompt.split == "test"], answers, directory)

    return store.build(score_key(task, prompts, arms), KIND, produce, inputs=(prompts, *arms.values()))


def write_evaluation(
    task: Task, prompts: list[Prompt], arms: Mapping[str, Mapping[str, Completion]], directory: Path
) -> int:
    """Score and write report.json and scores.jsonl; returns how many score lines there are."""
    if not prompts:
        raise DataError("the test split is empty: raise curation.test_fraction or bring more prompts")
    evaluation = evaluate_arms(task, prompts, arms)
    (directory / REPORT).write_text(evaluation.report.model_dump_json(indent=2))
    return write_jsonl(directory / SCORES, evaluation.lines)


def read_candidate(directory: Path) -> str | None:
    """Who answered as the candidate; None where the evaluation does not know."""
    return next((arm.answered_by for arm in read_report(directory).arms if arm.arm == "candidate"), None)


def read_report(directory: Path) -> EvalReport:
    path = directory / REPORT
    try:
        return EvalReport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path}: not what evaluate wrote ({error.error_count()} errors): evaluate again") from None


def read_arms(directory: Path) -> dict[str, ArtifactRef]:
    """What each arm answered, by reference."""
    arms = orjson.loads((directory / ARMS).read_bytes())
    return {name: ArtifactRef.model_validate(ref) for name, ref in arms.items()}


def read_scores(directory: Path) -> list[ScoreLine]:
    return list(read_jsonl(directory / SCORES, ScoreLine))


def read_arm_answers(directory: Path) -> dict[str, Completion]:
    """The completions of a directory by prompt; of several samples the one that is chosen for training counts."""
    return best_samples(read_parquet(directory / "completions.parquet", Completion))
