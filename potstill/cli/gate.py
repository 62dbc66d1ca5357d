"""`potstill gate`."""

from pathlib import Path
from typing import Annotated, NamedTuple

from cyclopts import Parameter

from potstill.cli.console import AsJson, say
from potstill.errors import UsageError


def gate(
    report: Annotated[Path | None, Parameter(name="REPORT", negative="")] = None,
    /,
    *,
    scores: Path | None = None,
    floor: float = 0.95,
    alpha: float = 0.05,
    champion_margin: float = 0.03,
    min_prompts: int = 50,
    out: Path | None = None,
    as_json: AsJson = False,
) -> int:
    """Decide whether the candidate keeps enough of the teacher. Exit code 0 passed, 3 rejected, 4 undecided.

    Args:
        report: The directory that evaluate wrote.
        scores: In its place, a file of lines {prompt_id, arm, score, slice}.
        floor: Share of the teacher's score that must be kept.
        alpha: Chance to pass a student that lies exactly at the floor.
        champion_margin: How much worse than the champion the candidate may be.
        min_prompts: Below this many scored prompts nothing is decided.
        out: File to write the decision to, for release.
    """
    from potstill import gate as deploy_gate
    from potstill.artifacts import write_atomically
    from potstill.cli.flags import checked
    from potstill.recipe import Gate

    if (report is None) == (scores is None):
        raise UsageError("give the directory that evaluate wrote, or --scores FILE: one of the two")
    thresholds = checked(
        Gate, retention_floor=floor, alpha=alpha, champion_margin=champion_margin, min_prompts=min_prompts
    )
    given = _given(report, scores)
    decision = deploy_gate.decide(deploy_gate.read_score_lines(given.scores), thresholds, given.candidate)
    if out is not None:
        write_atomically(out, decision.model_dump_json(indent=2))
    if as_json:
        say(decision.summary(), as_json=True)
        return decision.exit_code
    for remark in decision.remarks:
        print(remark)
    checks = {check.name: f"{check.verdict}: {check.detail}" for check in decision.checks}
    say({**checks, "verdict": decision.verdict}, as_json=False)
    return decision.exit_code


class _Given(NamedTuple):
    scores: Path
    candidate: str | None


def _given(report: Path | None, scores: Path | None) -> _Given:
    """The file of scores, and who is judged: what evaluate wrote is given by its directory or one of its files."""
    from potstill.evaluation.report import REPORT, SCORES, read_candidate

    path = report or scores
    assert path is not None
    directory = path.parent if path.name in {REPORT, SCORES} else path
    if report is None or not (directory / REPORT).is_file():
        return _Given(path / SCORES if path.is_dir() else path, None)
    return _Given(directory / SCORES, read_candidate(directory))
