"""The curation stage: read, redact, drop what is the same, quarantine what is broken, split."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from potstill import redact
from potstill.artifacts import ArtifactRef, ArtifactStore, StageKey
from potstill.curation.containers import read_file
from potstill.curation.habits import Habits
from potstill.curation.identity import prompt_id
from potstill.curation.inputs import Input, find_inputs, nothing_in
from potstill.curation.readers import Line, RawPrompt
from potstill.curation.split import assign_split
from potstill.curation.turns import first_prompt, prompts_of
from potstill.errors import DataError
from potstill.fingerprint import fingerprint
from potstill.recipe import Curation
from potstill.records import Prompt, QuarantinedLine, Row, Split, TaskKind, write_jsonl, write_parquet

STAGE = "curate"
VERSION = 3
KIND = "PromptSet"
PROMPTS = "prompts.parquet"
SUMMARY = "summary.json"
LINES_PER_REPORT = 1000
QUARANTINE = "quarantine.jsonl"


class CurationSummary(Row):
    """Where every line went: read + earlier_turns = quarantined + other_workloads + exact_duplicates + kept."""

    lines_read: int
    quarantined: int
    repaired: dict[str, int]
    """Lines that were mended to be read, by what was wrong with them."""
    failed_calls: int
    other_workloads: int
    earlier_turns: int
    """Prompts before the last one of a conversation, where `turns` is each."""
    flags: dict[str, int]
    exact_duplicates: int
    kept: int
    splits: dict[Split, int]
    redactions: dict[str, int]


def stage_key(config: Curation, kind: TaskKind) -> StageKey:
    """The key of this config over the bytes of its inputs. Errors: `DataError` where an input is missing."""
    settings = config.model_dump(exclude={"inputs"})
    inputs = [(file.name.rpartition("/")[2], file.digest) for file in find_inputs(config.inputs)]
    digest = fingerprint({"inputs": inputs, "config": settings, "kind": kind, "redaction": redact.VERSION})
    return StageKey(STAGE, VERSION, digest)


OnProgress = Callable[[int, int], None]
"""Told the bytes and the lines that are read."""


def curate(
    config: Curation,
    kind: TaskKind,
    store: ArtifactStore,
    *,
    on_progress: OnProgress | None = None,
    recipe_fingerprint: str = "",
) -> ArtifactRef:
    """The prompt set of these inputs; `on_progress` is told how far it is.

    Errors: `DataError` where too many lines, or all, cannot be used.
    """
    return store.build(
        stage_key(config, kind),
        KIND,
        lambda directory: _Curator(config, kind, on_progress, store.root / "quarantine").write(directory),
        recipe_fingerprint=recipe_fingerprint,
    )


def read_summary(directory: Path) -> CurationSummary:
    return CurationSummary.model_validate_json((directory / SUMMARY).read_bytes())


def check_splits(summary: CurationSummary) -> None:
    """Errors: `DataError` where nothing is left to train on or to judge with: nothing would come of paying a teacher."""
    remedies: dict[Split, str] = {"train": "lower validation_fraction and test_fraction", "test": "raise test_fraction"}
    for split, remedy in remedies.items():
        if summary.splits[split] == 0:
            raise DataError(f"the {split} split is empty, of {summary.kept} prompts: {remedy}, or bring more prompts")


def say_kept(summary: CurationSummary) -> str:
    """The funnel in one sentence."""
    splits = ", ".join(f"{count:,} {split}" for split, count in summary.splits.items())
    return f"{summary.kept:,} prompts kept of {summary.lines_read:,} lines: {splits}"


def describe(summary: CurationSummary) -> str:
    """The funnel as Markdown."""
    steps = {
        "lines read": summary.lines_read,
        "quarantined": summary.quarantined,
        "earlier turns of conversations": summary.earlier_turns,
        "of other workloads": summary.other_workloads,
        "exact duplicates": summary.exact_duplicates,
        "**prompts kept**": summary.kept,
    }
    rows = [*steps.items(), *((f"… {split}", count) for split, count in summary.splits.items())]
    mended = ", ".join(f"{count} × {kind}" for kind, count in sorted(summary.repaired.items())) or "nothing"
    redactions = ", ".join(f"{count} × {kind}" for kind, count in sorted(summary.redactions.items())) or "nothing"
    table = "\n".join(f"| {name} | {count:,} |" for name, count in rows)
    return f"| where the lines went | lines |\n|---|--:|\n{table}\n\nRedacted: {redactions}. Mended to be read: {mended}.\n"


class Sourced(NamedTuple):
    """A prompt after redaction, and where it came from."""

    raw: RawPrompt
    prompt_id: str
    source: str


class _Curator:
    def __init__(self, config: Curation, kind: TaskKind, on_progress: OnProgress | None, refuge: Path) -> None:
        self.config = config
        self.refuge = refuge
        self.on_progress = on_progress or (lambda *_: None)
        self.kind: TaskKind = kind
        self.counts: Counter[str] = Counter()
        self.repaired: Counter[str] = Counter()
        self.flags: Counter[str] = Counter()
        self.redactions: Counter[str] = Counter()
        self.splits: Counter[Split] = Counter()
        self.workloads: Counter[str] = Counter()
        self.quarantined: list[QuarantinedLine] = []
        self.habits = Habits()
        self.bytes_read = 0

    def write(self, directory: Path) -> int:
        kept = write_parquet(directory / PROMPTS, self._prompts(), Prompt)
        write_private(directory / QUARANTINE, self.quarantined)
        self._check(kept)
        summary = CurationSummary(
            lines_read=self.counts["read"],
            quarantined=len(self.quarantined),
            repaired=dict(self.repaired),
            failed_calls=self.counts["failed_calls"],
            other_workloads=self.counts["other_workloads"],
            earlier_turns=self.counts["earlier_turns"],
            flags=dict(self.flags + self.habits.flags()),
            exact_duplicates=self.counts["exact_duplicates"],
            kept=kept,
            splits={split: self.splits[split] for split in ("train", "validation", "test")},
            redactions=dict(self.redactions),
        )
        (directory / SUMMARY).write_text(summary.model_dump_json(indent=2))
        return kept

    def _prompts(self) -> Iterator[Prompt]:
        seen: set[bytes] = set()
        for found in self._sourced():
            identity = bytes.fromhex(found.prompt_id)
            if identity in seen:
                self.counts["exact_duplicates"] += 1
                continue
            seen.add(identity)
            group = prompt_id(first_prompt(found.raw.messages), found.raw.tools)
            split = assign_split(group, self.config)
            self.splits[split] += 1
            yield Prompt(
                prompt_id=found.prompt_id,
                messages=found.raw.messages,
                tools=found.raw.tools,
                task_kind=self.kind,
                workload=found.raw.workload,
                group_id=group,
                split=split,
                source=found.source,
                row_id=found.raw.row_id,
                reference=found.raw.reference,
            )

    def _sourced(self) -> Iterator[Sourced]:
        for source in find_inputs(self.config.inputs):
            for line in self._read(source):
                self.counts["read"] += 1
                self.repaired.update(line.repairs)
                if line.prompt is None:
                    self.quarantined.append(quarantined_line(source.name, line))
                    continue
                self.workloads[line.prompt.workload] += 1
                if self.config.workload is not None and line.prompt.workload != self.config.workload:
                    self.counts["other_workloads"] += 1
                    continue
                self.counts["failed_calls"] += line.prompt.failed_call
                self.flags.update(line.prompt.flags)
                self.habits.observe(line.prompt)
                raw = redact_prompt(line.prompt, self.redactions)
                prompts = list(prompts_of(raw, self.config.turns))
                self.counts["earlier_turns"] += len(prompts) - 1
                for prompt in prompts:
                    yield Sourced(prompt, prompt_id(prompt.messages, prompt.tools), f"{source.name}:{line.number}")

    def _read(self, source: Input) -> Iterator[Line]:
        with source.open() as file:
            for line in read_file(file):
                if self.counts["read"] % LINES_PER_REPORT == 0:
                    self.on_progress(self.bytes_read + file.tell(), self.counts["read"])
                yield line
            self.bytes_read += source.num_bytes

    def _check(self, kept: int) -> None:
        read, bad = self.counts["read"], len(self.quarantined)
        names = ", ".join(source.name for source in find_inputs(self.config.inputs))
        if read == 0:
            raise nothing_in(find_inputs(self.config.inputs))
        if bad > self.config.max_bad_fraction * read:
            reasons = Counter(row.reason.partition(":")[0] for row in self.quarantined).most_common(3)
            shown = "; ".join(f"{count} × {reason}" for reason, count in reasons)
            first = self.quarantined[0]
            kept_in = self.refuge / f"{fingerprint(names)[:12]}.jsonl"
            kept_in.parent.mkdir(parents=True, exist_ok=True)
            write_private(kept_in, self.quarantined)
            raise DataError(
                f"{bad} of {read} lines cannot be used, more than max_bad_fraction {self.config.max_bad_fraction:g}: "
                f"{shown}. First: {first.file}:{first.line}: {first.reason}. All of them: {kept_in}"
            )
        if kept == 0:
            raise DataError(f"{names}: no prompt of workload {self.config.workload!r}: {self._describe_workloads()}")

    def _describe_workloads(self) -> str:
        """What the log has instead of the workload that was asked for."""
        unnamed = self.workloads[""]
        named = [f"{name} ({count})" for name, count in self.workloads.most_common() if name][:5]
        said = [f"the log has {', '.join(named) or 'none'}"] if named or not unnamed else []
        if unnamed:
            lines = "1 line has" if unnamed == 1 else f"{unnamed} lines have"
            said.append(f"{lines} no workload_id: leave curation.workload out")
        return "; ".join(said)


def quarantined_line(name: str, line: Line) -> QuarantinedLine:
    """What is kept of a line that cannot be used."""
    redactor = redact.Redactor()
    excerpt = redactor.text(line.text.decode("utf-8", errors="replace"))[:200]
    return QuarantinedLine(file=name, line=line.number, reason=redactor.text(line.reason or ""), excerpt=excerpt)


def redact_prompt(raw: RawPrompt, counts: Counter[str]) -> RawPrompt:
    """The prompt without personal data; `counts` grows by what was replaced."""
    redactor = redact.Redactor()
    redacted = raw._replace(
        messages=redactor.value(raw.messages),
        tools=redactor.value(raw.tools),
        reference=redactor.value(raw.reference),
        workload=redactor.text(raw.workload),
        row_id=_private_id(raw.row_id, redactor),
    )
    counts.update(redactor.counts)
    return redacted


def _private_id(row_id: str | None, redactor: redact.Redactor) -> str | None:
    """An id that is personal gives way to its hash, which tells rows apart as well."""
    if row_id is None or redactor.text(row_id) == row_id:
        return row_id
    return f"id-{fingerprint(row_id)[:16]}"


def write_private(path: Path, rows: list[QuarantinedLine]) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    write_jsonl(path, rows)
