"""`potstill report`."""

from typing import Annotated

from cyclopts import Parameter

from potstill.cli.console import AsJson, say


def report(name: Annotated[str, Parameter(name="RECIPE", negative="")], /, *, as_json: AsJson = False) -> int:
    """Write the page of a recipe's latest run again, out of what is kept.

    Args:
        name: The recipe's name, or the path of a run.json.
    """
    from potstill.artifacts import open_store
    from potstill.report.page import format_usd
    from potstill.report.run_report import write_report
    from potstill.run_record import find_record

    store = open_store()
    summary = write_report(find_record(store.root, name), store)
    shown = summary.model_dump(mode="json")
    if not as_json:
        costs = {name: format_usd(cost) for name, cost in summary.cost_per_1k_usd.items()}
        shown |= {
            "spent_usd": format_usd(summary.spent_usd),
            "unknown_usd": format_usd(summary.unknown_usd),
            "cost_per_1k_usd": costs,
        }
    say(shown, as_json=as_json)
    return 0
