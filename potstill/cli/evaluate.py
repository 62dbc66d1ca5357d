"""`potstill evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from potstill.cli.console import AsJson, say, show_table
from potstill.errors import UsageError
from potstill.kinds import TaskKind

if TYPE_CHECKING:
    from potstill.evaluation.metrics import ArmMetrics
    from potstill.recipe import Task
    from potstill.records import Completion, Prompt

    Arms = dict[str, dict[str, Completion]]

COUNTS = ("n", "unscored", "truncated", "errors")


def evaluate(
    *,
    prompts: Path,
    arm: Annotated[list[str], Parameter(negative="")],
    out: Path,
    kind: TaskKind | None = None,
    labels: str | None = None,
    as_json: AsJson = False,
) -> int:
    """Score the answers of several arms on the test split.

    Args:
        prompts: A PromptSet directory, or chat JSONL whose every line is a test prompt.
        arm: NAME=FILE with lines {id or prompt_id, completion}, or NAME=DIR that teach or generate wrote; the gate reads
            teacher, candidate and champion.
        out: Directory to write report.json and scores.jsonl to.
        kind: What kind of task it is; default: as curated.
        labels: Classification: the allowed answers, separated by commas; default: every answer that is wanted.
    """
    from potstill.artifacts import StageKey, open_store
    from potstill.cli.inputs import read_rows, tell_unread, terms_of_completions
    from potstill.evaluation import report
    from potstill.fingerprint import fingerprint

    rows = read_rows(prompts)
    tell_unread(rows)
    asked = list({row.prompt.prompt_id: row.prompt for row in rows.rows if row.prompt.split == "test"}.values())
    prompt_ids: dict[str, set[str]] = {}
    for row in rows.rows:
        prompt_ids.setdefault(row.row_id, set()).add(row.prompt.prompt_id)
    named = [_arm(text, prompt_ids) for text in arm]
    arms: Arms = dict(named)
    if len(arms) < len(named):
        raise UsageError(f"--arm: a name is given twice in {', '.join(name for name, _ in named)}: keep one each")
    task = _task(kind or rows.rows[0].prompt.task_kind, labels, asked, arms)
    store = open_store()
    key = StageKey("evaluate-files", report.VERSION, fingerprint([task, asked, arms]))
    terms = [found for text in arm for found in terms_of_completions(Path(text.partition("=")[2]))]
    ref = store.build(
        key, report.KIND, lambda directory: report.write_evaluation(task, asked, arms, directory), teacher_terms=terms
    )
    store.export(ref, out)
    found = report.read_report(store.path(ref))
    for row in found.arms:
        if row.n == 0:
            print(
                f"{row.arm}: not one answer could be scored: check --labels, --kind and the arm's file", file=sys.stderr
            )
    about = {"prompts": found.num_prompts, "target": found.target, "out": str(out)}
    if as_json:
        arms_found = {row.arm: row.model_dump(mode="json", exclude={"arm"}) for row in found.arms}
        say({**about, "arms": arms_found}, as_json=True)
        return 0
    show_table(("arm", found.metric, "95 % interval", *COUNTS), [_table_row(row) for row in found.arms])
    say(about, as_json=False)
    return 0


def _table_row(arm: ArmMetrics) -> list[str]:
    from potstill.report.page import format_score

    interval = f"{format_score(arm.low)} – {format_score(arm.high)}"
    return [arm.arm, format_score(arm.score), interval, *(str(getattr(arm, name)) for name in COUNTS)]


def _arm(text: str, prompt_ids: Mapping[str, set[str]]) -> tuple[str, dict[str, Completion]]:
    from potstill.cli.inputs import read_completions
    from potstill.records import best_samples

    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise UsageError(f"--arm {text}: write NAME=completions.jsonl, such as teacher=out/completions.jsonl")
    return name, best_samples(read_completions(Path(path), prompt_ids))


def _task(kind: TaskKind, labels: str | None, asked: Iterable[Prompt], arms: Arms) -> Task:
    from potstill.cli.flags import checked
    from potstill.recipe import Task

    if kind != "classification":
        return checked(Task, kind=kind)
    if labels is not None:
        return checked(Task, kind=kind, labels=tuple(label.strip() for label in labels.split(",") if label.strip()))
    teacher = arms.get("teacher", {})
    wanted = {prompt.reference or _text(teacher.get(prompt.prompt_id)) for prompt in asked} - {""}
    return checked(Task, kind=kind, labels=tuple(sorted(wanted)))


def _text(completion: Completion | None) -> str:
    return "" if completion is None or completion.quarantine else completion.completion.strip()
