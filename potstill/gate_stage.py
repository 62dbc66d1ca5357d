"""The gate as a stage: an evaluation in, a kept decision out. The decision itself is `potstill.gate`."""

from pathlib import Path

from potstill import gate
from potstill.artifacts import ArtifactRef, ArtifactStore, StageKey
from potstill.evaluation.report import read_candidate, read_scores
from potstill.fingerprint import fingerprint
from potstill.gate import GateDecision
from potstill.recipe import Gate

STAGE = "gate"
VERSION = 2
KIND = "GateDecision"
DECISION = "decision.json"


def decision_key(evaluation: ArtifactRef, thresholds: Gate) -> StageKey:
    return StageKey(STAGE, VERSION, fingerprint([evaluation.digest, thresholds]))


def decide(evaluation: ArtifactRef, thresholds: Gate, store: ArtifactStore) -> ArtifactRef:
    """The gate's decision on an `EvalReport`."""

    def produce(directory: Path) -> int:
        found = store.path(evaluation)
        decision = gate.decide(read_scores(found), thresholds, read_candidate(found))
        (directory / DECISION).write_text(decision.model_dump_json(indent=2))
        return decision.n

    return store.build(decision_key(evaluation, thresholds), KIND, produce, inputs=(evaluation,))


def read_decision(directory: Path) -> GateDecision:
    return GateDecision.model_validate_json((directory / DECISION).read_bytes())
