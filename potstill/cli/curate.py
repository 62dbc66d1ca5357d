"""`potstill curate`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from potstill.cli.console import AsJson, progress, say
from potstill.kinds import TaskKind, Turns

MEGABYTE = 10**6


def curate(
    inputs: Annotated[list[str], Parameter(name="IN", negative="")],
    /,
    *,
    out: Path,
    workload: str | None = None,
    kind: TaskKind = "classification",
    turns: Turns = "last",
    validation_fraction: float = 0.05,
    test_fraction: float = 0.2,
    split_key: str = "potstill",
    max_bad_fraction: float = 0.05,
    as_json: AsJson = False,
) -> int:
    """Read production logs of any known form into a clean, split prompt set.

    Args:
        inputs: Files, globs and folders: JSON lines, JSON lists, CSV, Parquet, saved data sets, packed or not.
        out: Directory to write the prompt set to.
        workload: Keep only the log's lines with this workload_id.
        kind: What kind of task the prompts are.
        turns: Which prompts a conversation is: its last one, or one before each answer in it.
        validation_fraction: Share of prompts to watch training with.
        test_fraction: Share of prompts that only evaluation sees.
        split_key: Keys the split.
        max_bad_fraction: More unusable lines than this are an error.
    """
    from potstill.artifacts import open_store
    from potstill.cli.flags import checked
    from potstill.curation import curate as stage
    from potstill.recipe import Curation

    config = checked(
        Curation,
        inputs=tuple(inputs),
        workload=workload,
        turns=turns,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        split_key=split_key,
        max_bad_fraction=max_bad_fraction,
    )
    store = open_store()
    with curation_progress(config.inputs) as advance:
        ref = stage.curate(config, kind, store, on_progress=advance)
    store.export(ref, out)
    summary = stage.read_summary(store.path(ref))
    say({**summary.model_dump(mode="json"), "out": str(out)}, as_json=as_json)
    return 0


@contextmanager
def curation_progress(inputs: Sequence[str]) -> Iterator[Callable[[int, int], None]]:
    """A bar over the megabytes of the inputs, with the lines that are read beside it."""
    from potstill.curation.inputs import find_inputs

    num_bytes = sum(file.num_bytes for file in find_inputs(tuple(inputs)))
    with progress("curate, MB", num_bytes // MEGABYTE) as advance:
        yield lambda num_bytes, lines: advance(num_bytes // MEGABYTE, note=f"{lines:,} lines")
