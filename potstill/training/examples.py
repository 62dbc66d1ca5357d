"""Assembles what the student learns from: SFT examples out of prompts and the teacher's answers, and DPO pairs."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from potstill.artifacts import ArtifactRef, ArtifactStore, StageKey
from potstill.errors import DataError
from potstill.fingerprint import fingerprint
from potstill.records import Completion, Example, Preference, Prompt, Row, Split, read_parquet, write_parquet

STAGE = "assemble"
VERSION = 1
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
        asked = _prompts(store.path(prompts))
        answers = {row.prompt_id: row for row in _usable(store.path(completions))}
        taught = [prompt for prompt in asked if prompt.split != "test"]
        examples = [_example(prompt, answers[prompt.prompt_id]) for prompt in taught if prompt.prompt_id in answers]
        by_split: dict[Split, int] = {
            split: sum(row.split == split for row in examples) for split in ("train", "validation")
        }
        if not by_split["train"]:
            raise DataError(
                f"nothing to train on: {len(taught)} prompts outside the test split, none with a usable answer. "
                "Look at the completions' quarantine reasons"
            )
        summary = AssemblySummary(examples=by_split, without_usable_answer=len(taught) - len(examples))
        (directory / SUMMARY).write_text(summary.model_dump_json(indent=2))
        return write_parquet(directory / EXAMPLES, examples, Example)

    key = sft_key(prompts, completions)
    return store.build(key, SFT_KIND, produce, inputs=(prompts, completions))


def assemble_preferences(
    dataset: ArtifactRef, base_outputs: ArtifactRef, max_pairs: int, store: ArtifactStore
) -> ArtifactRef:
    """DPO pairs: chosen is the teacher's answer, rejected the base's own; equal ones teach nothing and are dropped.

    Errors: `DataError` where no pair is left.
    """
    key = StageKey("assemble-preferences", VERSION, fingerprint([dataset.digest, base_outputs.digest, max_pairs]))

    def produce(directory: Path) -> int:
        rejected = {
            row.prompt_id: row for row in read_parquet(store.path(base_outputs) / "completions.parquet", Completion)
        }
        examples = (row for row in read_parquet(store.path(dataset) / EXAMPLES, Example) if row.split == "train")
        pairs = sorted(_pairs(examples, rejected), key=lambda pair: pair.prompt_id)[:max_pairs]
        if not pairs:
            raise DataError("no DPO pair: the base answers every prompt as the teacher does, so SFT is enough")
        return write_parquet(directory / PAIRS, pairs, Preference)

    return store.build(key, PREFERENCE_KIND, produce, inputs=(dataset, base_outputs))


def examples_from_lines(rows: Iterable[tuple[Prompt, Completion]]) -> Iterator[Example]:
    """SFT examples of completions that carry their prompts, such as the lines that `potstill teach` writes."""
    for prompt, completion in rows:
        if completion.quarantine is None and completion.sample_index == 0:
            yield _example(prompt, completion)


def _prompts(directory: Path) -> list[Prompt]:
    return list(read_parquet(directory / "prompts.parquet", Prompt))


def _usable(directory: Path) -> Iterator[Completion]:
    for row in read_parquet(directory / "completions.parquet", Completion):
        if row.quarantine is None and row.sample_index == 0:
            yield row


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
                split=example.split,
            )
