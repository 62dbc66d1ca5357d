"""Assembly: PromptSet + Completions → SFTDataset."""

from prefect import task

from potstill.artifacts import ArtifactRef, StageKey, open_store
from potstill.training import examples
from tasks.policies import mirror


def _assemble_key(prompts: ArtifactRef, completions: ArtifactRef) -> StageKey:
    return examples.sft_key(prompts, completions)


@task(cache_policy=mirror(_assemble_key), result_serializer="json")
def assemble(prompts: ArtifactRef, completions: ArtifactRef) -> ArtifactRef:
    """The SFT dataset: what the student may learn from."""
    return examples.assemble_sft(prompts, completions, open_store())
