"""`potstill doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from potstill.cli.console import AsJson
from potstill.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from potstill.doctor.finding import Finding

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    recipe: Annotated[Path | None, Parameter(name="RECIPE", negative="")] = None,
    /,
    *,
    call: Annotated[bool, Parameter(negative="")] = False,
    overrides: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    as_json: AsJson = False,
) -> int:
    """What this machine lacks: each line ok, warn or fail, with the remedy. Exit code 1 where one fails.

    Args:
        recipe: Also what this recipe needs: its inputs, base, teacher, key, deployment.
        call: Ask the recipe's teacher for one token; what it costs is said, and booked in the ledger.
        overrides: section.field=VALUE, in place of what the file says.
    """
    from potstill.doctor.visit import visit

    if call and recipe is None:
        raise UsageError("--call asks a recipe's teacher: name the recipe")
    findings = visit(recipe, tuple(overrides or ()), call=call)
    if as_json:
        import orjson

        counts = {status: sum(found.status == status for found in findings) for status in STYLES}
        print(orjson.dumps({**counts, "findings": [found._asdict() for found in findings]}).decode(), flush=True)
    else:
        _show(findings)
    return int(any(found.status == "fail" for found in findings))


def _show(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "what", "found", "remedy")
    for found in findings:
        told = (Text(text) for text in (found.name, found.said, found.remedy))  # a server's text is no markup
        table.add_row(Text(found.status, style=STYLES[found.status]), *told)
    Console().print(table)
