"""`python -m deployments up|down|status`: everything on one machine. `make up`, `make down` and `make status` call it."""

import argparse
import os
import sys
from pathlib import Path

from deployments.box.config import ROOT
from potstill.exits import exit_code_of
from potstill.home import potstill_home

CONFIG = ROOT / "deployments" / "box.yaml"


def main() -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m deployments", description="Potstill on one machine.")
    parser.add_argument("--home", type=Path, help="in place of POTSTILL_HOME")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start everything, and wait until it answers")
    up.add_argument("--config", type=Path, default=CONFIG, help="what runs, and on which ports")
    up.add_argument("--foreground", action="store_true", help="be the supervisor, until a signal comes")
    commands.add_parser("down", help="end everything")
    status = commands.add_parser("status", help="0: all is up; 1: something is not; 3: nothing is")
    status.add_argument("--json", dest="as_json", action="store_true")
    for command in (up, *map(commands.choices.get, ("down", "status"))):
        assert command is not None
        command.add_argument("--home", type=Path, help="in place of POTSTILL_HOME", default=argparse.SUPPRESS)
    return _run(parser.parse_args())


def _run(arguments: argparse.Namespace) -> int:
    from deployments.box import commands
    from deployments.box.supervisor import run_box

    if arguments.home is not None:
        os.environ["POTSTILL_HOME"] = str(arguments.home)
    home = potstill_home()
    if arguments.command == "down":
        return commands.down(home)
    if arguments.command == "status":
        return commands.status(home, as_json=arguments.as_json)
    config = arguments.config.resolve()
    return run_box(home, config) if arguments.foreground else commands.up(home, config)


if __name__ == "__main__":
    sys.exit(exit_code_of(main, debug=False))
