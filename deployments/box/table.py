"""The box as people see it."""

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from deployments.box.places import Places, State

STYLES = {"up": "green", "done": "green", "off": "dim", "failing": "red", "restarting": "yellow"}


def show_state(state: State, places: Places, console: Console) -> None:
    """What runs, where, under which pid, and how to log in."""
    table = Table("what", Column("address", no_wrap=True), "pid", "state", "remark")
    for kept in state.processes:
        style = STYLES.get(kept.condition, "")
        condition = f"[{style}]{kept.condition}[/{style}]" if style else kept.condition
        restarts = [f"restarted {kept.num_restarts} times"] if kept.num_restarts else []
        remark = "; ".join(filter(None, [*restarts, kept.remark]))
        table.add_row(kept.name, kept.address or "", str(kept.pid or ""), condition, escape(remark))
    console.print(table)
    server = next((kept.address for kept in state.processes if kept.name == "server"), None)
    lines = {
        "supervisor": f"pid {state.supervisor.pid}, config {state.config}",
        "UI": f"{server}, asks for the string that stands in {places.auth}" if server else "",
        "your shell": f". {places.env}",
        "logs": str(places.logs),
    }
    for name, said in lines.items():
        if said:
            console.print(f"[bold]{name:>10}[/bold]  {escape(said)}", highlight=False, soft_wrap=True)
