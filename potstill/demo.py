"""`make demo`: the main job from the log to the served answer, with a replayed teacher. Asks nothing, leaves nothing running."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
from rich.console import Console

from potstill import release
from potstill.errors import SubprocessError
from potstill.exits import exit_code_of
from potstill.home import potstill_home
from potstill.recipe import Recipe
from potstill.recipe_file import load_recipe
from potstill.records import read_jsonl
from potstill.release import Golden
from potstill.report.page import format_usd
from potstill.report.run_report import RunSummary
from potstill.report.terminal import show_run

RECIPE = Path("recipes/demo.yaml")
ANSWERS = Path("examples/demo/answers.jsonl")
SUMMARY = Path("demo-summary.json")


class Served(NamedTuple):
    """What the served student said to a golden prompt."""

    answer: str
    golden: Golden


def main() -> int:
    """Run the demo and return the exit code of its run."""
    return exit_code_of(_demo, debug=False)


def _demo() -> int:
    started = time.monotonic()
    SUMMARY.unlink(missing_ok=True)
    recipe = load_recipe(RECIPE)
    with _server(_replay_command(recipe)) as teacher:
        run = _run(teacher["url"])
    served = None
    if run.verdict == "passed":
        with _server(["-m", "potstill.cli", "serve", "--port", "0"]) as gateway:
            served = _ask(recipe, gateway["url"])
    seconds = round(time.monotonic() - started, 1)
    SUMMARY.write_text(json.dumps(_summary(run, served, seconds), indent=2) + "\n")
    _show(run, served, seconds)
    return 0 if served is not None and served.answer == served.golden.expected else 1


def _summary(run: RunSummary, served: Served | None, seconds: float) -> dict[str, Any]:
    return {
        "arms": {name: arm.model_dump() for name, arm in run.arms.items()},
        "verdict": run.verdict,
        "spent_usd": float(run.spent_usd),
        "cost_per_1k_usd": {name: cost and float(cost) for name, cost in run.cost_per_1k_usd.items()},
        "wall_seconds": seconds,
        "report": run.report,
        "served_answer": served and served.answer,
        "expected_answer": served and served.golden.expected,
    }


def _replay_command(recipe: Recipe) -> list[str]:
    port = urlsplit(recipe.teacher.base_url or "").port or 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            port = 0  # somebody else has it: any free one will do
    return ["-m", "potstill.teacher.replay", str(ANSWERS), "--port", str(port)]


def _run(teacher_url: str) -> RunSummary:
    """The whole recipe, by the command that a user would type."""
    command = ["-m", "potstill.cli", "run", str(RECIPE), "--set", f"teacher.base_url={teacher_url}", "--json"]
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout.strip():
        raise SubprocessError(f"the run ended with status {done.returncode}: its reason stands above")
    return RunSummary.model_validate_json(done.stdout.strip().splitlines()[-1])


@contextmanager
def _server(arguments: list[str]) -> Iterator[dict[str, Any]]:
    """A server of ours that prints a line of JSON when it is ready; it is stopped by its pid."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SubprocessError(f"{' '.join(arguments[1:3])} ended with status {process.wait()}")
        yield json.loads(line)
    finally:
        process.terminate()
        process.wait()


def _ask(recipe: Recipe, url: str) -> Served:
    """The served student's answer to the first golden prompt, asked as any client would."""
    version = release.resolve(potstill_home(), recipe.name)
    golden = next(read_jsonl(release.version_directory(potstill_home(), version) / "golden.jsonl", Golden))
    body = {"model": recipe.name, "messages": golden.messages}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    reply.raise_for_status()
    return Served(reply.json()["choices"][0]["message"]["content"], golden)


def _show(run: RunSummary, served: Served | None, seconds: float) -> None:
    console = Console()
    remarks = {
        "spent": f"{format_usd(run.spent_usd)}, what the recorded answers would have cost; no money left the machine"
    }
    if served is not None:
        asked = str(served.golden.messages[-1]["content"]).strip().splitlines()[0]
        why = "a test prompt it answered correctly, asked again: is the served model the tested one?"
        remarks["asked"] = f"{asked[:76]} ({why})"
        remarks["served answer"] = f"{served.answer} (expected {served.golden.expected})"
    show_run(run, console, remarks={**remarks, "took": f"{seconds} s"})
    console.print("The teacher of this demo replays the true labels: it scores 1.00 by construction.", style="dim")


if __name__ == "__main__":
    sys.exit(main())
