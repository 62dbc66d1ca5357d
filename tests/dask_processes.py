"""A Dask scheduler and its workers, and the teacher stage, each in processes of their own as they are in service."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from prefect import flow

from potstill.artifacts import ArtifactRef, ArtifactStore, StageKey, open_store
from potstill.recipe import Recipe
from potstill.records import Prompt, write_parquet
from tasks.server import start_server
from tasks.teaching import teach
from tests.fake_teacher import numbered_rows

ROOT = Path(__file__).parents[1]
RUN_SECONDS = 600
JOIN_SECONDS = 60


class Stage(NamedTuple):
    """The teacher stage on so many prompts, with its state below `root`."""

    root: Path
    recipe: dict[str, Any]
    prompts: int
    env: Mapping[str, str] = {}

    @property
    def home(self) -> Path:
        return self.root / "home"

    def environment(self) -> dict[str, str]:
        """What the run and its workers have in common."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "POTSTILL_"))}
        ours = {"POTSTILL_HOME": str(self.home), "PREFECT_HOME": str(self.root / "prefect")}
        quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PYTHONPATH": str(ROOT)}
        return kept | ours | quiet | dict(self.env)

    def start(self) -> "subprocess.Popen[bytes]":
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "recipe.json").write_text(json.dumps(self.recipe))
        command = [sys.executable, "-m", "tests.dask_processes", str(self.root / "recipe.json"), str(self.prompts)]
        with (self.root / "out").open("wb") as out, (self.root / "log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=self.environment(), stdout=out, stderr=log)

    def finish(self, process: "subprocess.Popen[bytes] | None" = None) -> dict[str, Any]:
        """Run it to its end, or what was started; returns what it said of itself."""
        assert (process or self.start()).wait(RUN_SECONDS) == 0, self.said()[-3000:]
        return json.loads((self.root / "out").read_text().splitlines()[-1])

    def said(self) -> str:
        return (self.root / "log").read_text()

    def answers(self, told: dict[str, Any]) -> str:
        """A digest of all that was answered and what it cost; the time that each answer took is no part of it."""
        directory = ArtifactStore(self.home).path(ArtifactRef.model_validate(told["completions"]))
        files = [(directory / name).read_bytes() for name in ("completions.jsonl", "summary.json")]
        return hashlib.sha256(b"".join(files)).hexdigest()

    def processes(self) -> list[psutil.Process]:
        """Everything that runs with this state directory."""
        return [process for process in psutil.process_iter() if _home_of(process) == str(self.home)]


def _home_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("POTSTILL_HOME")
    except psutil.Error:
        return None


@contextmanager
def scheduler(directory: Path) -> Iterator[str]:
    """A scheduler on this machine; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    with _running(command, os.environ, directory / "scheduler.log"):
        wait_until(lambda: _listens(port), JOIN_SECONDS)
        yield f"tcp://127.0.0.1:{port}"


@contextmanager
def worker(address: str, stage: Stage, name: str, *, threads: int = 8) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker as `dask worker` starts it: a nanny, which the process here is, and below it what works."""
    sizes = ["--nthreads", str(threads), "--no-dashboard", "--host", "127.0.0.1", "--name", name]
    command = ["distributed.cli.dask_worker", address, *sizes, "--local-directory", str(stage.root / f"dask-{name}")]
    stage.root.mkdir(parents=True, exist_ok=True)
    with _running(command, stage.environment(), stage.root / f"worker-{name}.log") as process:
        yield process


@contextmanager
def workers(address: str, stage: Stage, *names: str) -> Iterator[list["subprocess.Popen[bytes]"]]:
    with ExitStack() as stack:
        yield [stack.enter_context(worker(address, stage, name)) for name in names]


def working_child(nanny: "subprocess.Popen[bytes]") -> psutil.Process:
    """What works below a nanny; its other child only tracks resources."""
    found = [child for child in psutil.Process(nanny.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(found) == 1
    return found[0]


def wait_until(happened: Any, seconds: float) -> float:
    """Returns how long it took."""
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < seconds, "nothing happened"
        time.sleep(0.05)
    return time.monotonic() - began


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _running(module: list[str], env: Mapping[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *module], cwd=ROOT, env=dict(env), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in below:
            if child.is_running():
                child.kill()


@flow(name="teach-only", persist_result=True)
def teach_only(recipe: Recipe, prompts: ArtifactRef) -> ArtifactRef:
    """The teacher stage of the parent flow."""
    return teach(recipe, prompts)


def main() -> None:
    recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_bytes())
    count = int(sys.argv[2])
    asked = [row.prompt for row in numbered_rows(count)]
    prompts = open_store().build(
        StageKey("drill-prompts", 1, f"{count:064x}"),
        "PromptSet",
        lambda directory: write_parquet(directory / "prompts.parquet", asked, Prompt),
    )
    start_server()
    began = time.monotonic()
    completions = teach_only(recipe, prompts)
    print(json.dumps({"completions": completions.model_dump(), "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
