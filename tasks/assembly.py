"""Assembly: PromptSet + Completions → SFTDataset, and with the base's own answers → PreferenceDataset."""

from prefect import task

from potstill.artifacts import ArtifactRef, StageKey, open_store
from potstill.training import examples
from tasks.caching import mirror


def _assemble_key(prompts: ArtifactRef, completions: ArtifactRef) -> StageKey:
    return examples.sft_key(prompts, completions)


@task(cache_policy=mirror(_assemble_key), result_serializer="json")
def assemble(prompts: ArtifactRef, completions: ArtifactRef) -> ArtifactRef:
    """The SFT dataset: what the student may learn from."""
    return examples.assemble_sft(prompts, completions, open_store())


def _pairs_key(dataset: ArtifactRef, own_outputs: ArtifactRef, max_pairs: int) -> StageKey:
    return examples.pairs_key(dataset, own_outputs, max_pairs)


@task(cache_policy=mirror(_pairs_key), result_serializer="json")
def assemble_pairs(dataset: ArtifactRef, own_outputs: ArtifactRef, max_pairs: int) -> ArtifactRef:
    """The DPO pairs: the teacher's answers against the base's own."""
    return examples.assemble_preferences(dataset, own_outputs, max_pairs, open_store())
