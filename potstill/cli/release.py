"""`potstill release`, `releases` and `rollback`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from potstill.cli.console import AsJson, say
from potstill.errors import ReleaseError, UsageError
from potstill.home import potstill_home

if TYPE_CHECKING:
    from potstill.approval import Approval
    from potstill.gate import GateDecision


def release(
    student: Annotated[Path, Parameter(name="STUDENT", negative="")],
    /,
    *,
    recipe: str,
    decision: Path,
    max_tokens: int = 512,
    by: str | None = None,
    reason: str | None = None,
    as_json: AsJson = False,
) -> int:
    """Make a student that passed its gate a version, and the champion of its recipe. Exit code 3 or 4 where it did not.

    Args:
        student: The directory that train wrote.
        recipe: The name under which it is served.
        decision: The file that `potstill gate --out` wrote, or a GateDecision directory.
        max_tokens: Longest answer where a request names no limit.
        by: Who approves, for the release's lineage. Needed where the operator (POTSTILL_APPROVAL) or the recipe's latest run
            asks, and where the decision names no student.
        reason: Why, for the release's lineage.
    """
    from potstill import release as versions
    from potstill.artifacts import load_artifact, open_store
    from potstill.student.base import resolve_base
    from potstill.training.launch import KIND, read_spec

    verdict = _read_decision(decision)
    if verdict.verdict != "passed":
        print(f"the gate's verdict is {verdict.verdict}: nothing is released")
        if as_json:
            say({"version": None, "previous": None, "alias": None, "digest": None}, as_json=True)
        return verdict.exit_code
    load_artifact(student, KIND)
    approval = _word(recipe, verdict, by, reason)
    published = versions.publish(
        potstill_home(),
        recipe,
        student,
        base=resolve_base(read_spec(student).student, open_store()),
        decision=verdict,
        golden=(),
        max_tokens=max_tokens,
        approval=approval,
    )
    say(published._asdict(), as_json=as_json)
    return 0


def releases(
    recipe: Annotated[str | None, Parameter(name="RECIPE", negative="")] = None, /, *, as_json: AsJson = False
) -> int:
    """List versions and where the aliases point.

    Args:
        recipe: Only this one.
    """
    from potstill import release as versions

    home = potstill_home()
    known = versions.all_recipes(home)
    if recipe is not None and recipe not in known:
        raise UsageError(
            f"no version of {recipe!r}: released are {', '.join(known) or 'none yet: `potstill run RECIPE`'}"
        )
    names = known if recipe is None else [recipe]
    found = {
        name: {
            "aliases": versions.aliases(home, name).model_dump(mode="json"),
            "versions": [version.version for version in versions.releases(home, name)],
        }
        for name in names
    }
    if as_json:
        say(found, as_json=True)
        return 0
    for name, what in found.items():
        marks = {version: alias for alias, version in what["aliases"].items() if version}
        for version in what["versions"]:
            print(f"{name}@{version}  {marks.get(version, '')}".rstrip())
    if not any(what["versions"] for what in found.values()):
        print("nothing is released yet: run a recipe with `potstill run RECIPE`")
    return 0


def rollback(recipe: Annotated[str, Parameter(name="RECIPE", negative="")], /, *, as_json: AsJson = False) -> int:
    """Swap the champion and the version before it; what serves follows with the next request.

    Args:
        recipe: Whose champion.
    """
    from potstill import release as versions

    say(versions.rollback(potstill_home(), recipe).model_dump(mode="json"), as_json=as_json)
    return 0


def _word(recipe: str, decision: GateDecision, by: str | None, reason: str | None) -> Approval | None:
    """Somebody's word, where it is given; errors where it is needed and is not."""
    from potstill.cli.approve import word_of

    if by is not None and reason is not None:
        return word_of(by, reason)
    if by is not None or reason is not None:
        raise UsageError("--by NAME and --reason TEXT belong together: give both")
    if (asks := _who_asks(recipe, decision)) is not None:
        raise ReleaseError(f"release {recipe}: {asks}: add --by NAME --reason TEXT, who approves it and why")
    return None


def _who_asks(recipe: str, decision: GateDecision) -> str | None:
    from potstill.approval import APPROVAL_VARIABLE, needs_word
    from potstill.run_record import latest_record

    if needs_word():
        return f"{APPROVAL_VARIABLE} is ask here"
    if decision.candidate is None:
        return "the decision names no student, as the gate did not read what evaluate wrote, so somebody has to vouch for it"
    latest = latest_record(potstill_home(), recipe)
    return None if latest is None or not needs_word(latest.recipe) else "gate.approval of its latest run is ask"


def _read_decision(path: Path) -> GateDecision:
    from pydantic import ValidationError

    from potstill.gate import GateDecision
    from potstill.gate_stage import DECISION

    file = path / DECISION if path.is_dir() else path
    try:
        return GateDecision.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"--decision {path}: no such file: write it with `potstill gate … --out FILE`") from None
    except ValidationError:
        raise UsageError(
            f"--decision {file}: not a gate decision: write it with `potstill gate … --out FILE`"
        ) from None
