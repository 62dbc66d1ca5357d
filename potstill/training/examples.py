"""Assembles what the student learns from: SFT examples out of prompts and the teacher's answers, and DPO pairs."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from potstill.artifacts import ArtifactRef, ArtifactStore, StageKey
from potstill.errors import DataError
from potstill.fingerprint import fingerprint
from potstill.records import (
    Completion,
    Example,
    Preference,
    Prompt,
    Row,
    Split,
    TeacherTerms,
    best_samples,
    read_parquet,
    write_parquet,
)

STAGE = "assemble"
VERSION = 3
PAIRS_VERSION = 3
SFT_KIND = "SFTDataset"
PREFERENCE_KIND = "PreferenceDataset"
EXAMPLES = "examples.parquet"
PAIRS = "pairs.parquet"
SUMMARY = "summary.json"


class AssemblySummary(Row):
    """Where the prompts of the train and validation splits went."""

    examples: dict[Split, int]
    without_usable_answer: int
    """Prompts whose answer is quarantined or missing: never trained on."""


def sft_key(prompts: ArtifactRef, completions: ArtifactRef) -> StageKey:
    """The key of an SFT dataset."""
    return StageKey(STAGE, VERSION, fingerprint([prompts.digest, completions.digest]))


def assemble_sft(prompts: ArtifactRef, completions: ArtifactRef, store: ArtifactStore) -> ArtifactRef:
    """The SFT dataset of a prompt set and its completions; the test split never enters it.

    Errors: `DataError` where no example is left.
    """

    def produce(directory: Path) -> int:
        asked = read_parquet(store.path(prompts) / "prompts.parquet", Prompt)
        rows = read_parquet(store.path(completions) / "completions.parquet", Completion)
        answers = _usable(rows)
        taught = [prompt for prompt in asked if prompt.split != "test"]
        found = [_example(prompt, answers[prompt.prompt_id]) for prompt in taught if prompt.prompt_id in answers]
        return _write(directory, found, len(taught))

    key = sft_key(prompts, completions)
    return store.build(key, SFT_KIND, produce, inputs=(prompts, completions))


def pairs_key(dataset: ArtifactRef, base_outputs: ArtifactRef, max_pairs: int) -> StageKey:
    """The key of the DPO pairs."""
    content = [dataset.digest, base_outputs.digest, max_pairs]
    return StageKey("assemble-preferences", PAIRS_VERSION, fingerprint(content))


def assemble_preferences(
    dataset: ArtifactRef, base_outputs: ArtifactRef, max_pairs: int, store: ArtifactStore
) -> ArtifactRef:
    """DPO pairs: chosen is the teacher's answer, rejected the base's own; equal ones teach nothing and are dropped.

    It has no row where the base answers every prompt as the teacher does: then SFT is enough.
    """
    key = pairs_key(dataset, base_outputs, max_pairs)

    def produce(directory: Path) -> int:
        rejected = {
            row.prompt_id: row for row in read_parquet(store.path(base_outputs) / "completions.parquet", Completion)
        }
        examples = (row for row in read_parquet(store.path(dataset) / EXAMPLES, Example) if row.split == "train")
        pairs = sorted(_pairs(examples, rejected), key=lambda pair: pair.prompt_id)[:max_pairs]
        return write_parquet(directory / PAIRS, pairs, Preference)

    return store.build(key, PREFERENCE_KIND, produce, inputs=(dataset, base_outputs))


def assemble_lines(
    lines: Sequence[tuple[Prompt, Completion]], store: ArtifactStore, teacher_terms: Sequence[TeacherTerms] = ()
) -> ArtifactRef:
    """The SFT dataset of completions that carry their prompts, such as the lines that `potstill teach` writes."""
    content = [(prompt.split, prompt.messages, prompt.tools, completion) for prompt, completion in lines]

    def produce(directory: Path) -> int:
        taught = {prompt.prompt_id: prompt for prompt, _ in lines if prompt.split != "test"}
        answers = _usable(completion for _, completion in lines)
        found = [_example(prompt, answers[name]) for name, prompt in taught.items() if name in answers]
        return _write(directory, found, len(taught))

    key = StageKey("assemble-lines", VERSION, fingerprint(content))
    return store.build(key, SFT_KIND, produce, teacher_terms=teacher_terms)


def _usable(completions: Iterable[Completion]) -> dict[str, Completion]:
    return {name: row for name, row in best_samples(completions).items() if row.quarantine is None}


def _write(directory: Path, found: list[Example], num_prompts: int) -> int:
    splits: tuple[Split, ...] = ("train", "validation")
    counts: dict[Split, int] = {split: sum(row.split == split for row in found) for split in splits}
    if not counts["train"]:
        raise DataError(
            f"nothing to train on: {num_prompts} prompts outside the test split, {len(found)} of them with a usable "
            "answer, none in the train split. Look at the quarantine reasons of the completions and at the fractions"
        )
    summary = AssemblySummary(examples=counts, without_usable_answer=num_prompts - len(found))
    (directory / SUMMARY).write_text(summary.model_dump_json(indent=2))
    return write_parquet(directory / EXAMPLES, found, Example)


def _example(prompt: Prompt, completion: Completion) -> Example:
    return Example(
        prompt_id=prompt.prompt_id,
        prompt=prompt.messages,
        completion=[completion.message],
        tools=prompt.tools,
        split=prompt.split,
    )


def _pairs(examples: Iterable[Example], rejected: dict[str, Completion]) -> Iterator[Preference]:
    for example in examples:
        base = rejected.get(example.prompt_id)
        chosen = str(example.completion[0].get("content") or "")
        if base is not None and base.completion.strip() not in {"", chosen.strip()}:
            yield Preference(
                prompt_id=example.prompt_id,
                prompt=example.prompt,
                chosen=example.completion,
                rejected=[base.message],
                tools=example.tools,
                split=example.split,
            )
