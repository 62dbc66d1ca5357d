"""A tiny student with random weights, its releases, and `potstill serve` in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from potstill.artifacts import ArtifactStore, StageKey
from potstill.gate import GateDecision
from potstill.recipe import Student
from potstill.records import adapter_name
from potstill.release import Golden, Release, publish
from potstill.student.base import resolve_base
from potstill.subprocesses import process_started_at
from tests.scripted_server import wait_until
from tests.tiny_student import build_base

WORDS = "the still takes the wash and what it distils twice comes out cleaner café naïve über straße 日本 " * 8
CONTEXT_TOKENS = 256

SERVE = """
import json, sys
from pathlib import Path
from potstill.serving.serve import serve
serve(Path(sys.argv[1]), "127.0.0.1", 0, on_ready=lambda url: print(json.dumps({"url": url}), flush=True))
"""


class TinyStudent(NamedTuple):
    base: Path
    adapters: tuple[Path, Path]
    """`adapter/` directories whose answers differ."""


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> TinyStudent:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    root = tmp_path_factory.mktemp("tiny")
    base = build_base(root / "base", WORDS.split(), context=CONTEXT_TOKENS)
    adapters = []
    for seed in (11, 12):
        torch.manual_seed(seed)
        lora = LoraConfig(
            r=8, lora_alpha=64, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
        )
        adapted = get_peft_model(LlamaForCausalLM.from_pretrained(base), lora)
        adapted.save_pretrained(root / str(seed))
        adapters.append(root / str(seed))
    return TinyStudent(base, (adapters[0], adapters[1]))


@pytest.fixture(scope="session")
def release_tiny(tiny_student: TinyStudent) -> Callable[..., Release]:
    """`release_tiny(home, which)` makes one of the two adapters the champion of the recipe "tiny".

    `evaluated_on` is the identity that the base had then; default: the one it has now.
    """

    def release(home: Path, which: int, evaluated_on: str | None = None) -> Release:
        def produce(directory: Path) -> int:
            (directory / "adapter").mkdir()
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                (directory / "adapter" / name).write_bytes((tiny_student.adapters[which] / name).read_bytes())
            return 1

        store = ArtifactStore(home)
        ref = store.build(StageKey("train", 1, f"{which}" * 24), "StudentAdapter", produce)
        student = Student(base=str(tiny_student.base))
        decision = GateDecision(
            verdict="passed",
            retention=1.0,
            lower=0.97,
            upper=1.0,
            floor=0.95,
            alpha=0.05,
            n=300 + which,
            checks=(),
            more_prompts_needed=None,
            reasons=(),
            candidate=adapter_name(ref.digest),
        )
        base = resolve_base(student, store)
        golden = [Golden(messages=[{"role": "user", "content": "what comes out?"}], expected="cleaner")]
        return publish(
            home,
            "tiny",
            store.path(ref),
            base=base._replace(identity=evaluated_on or base.identity),
            decision=decision,
            golden=golden,
            max_tokens=12,
        )

    return release


class Served(NamedTuple):
    url: str
    process: "subprocess.Popen[str]"
    home: Path

    def backend(self) -> psutil.Process:
        """The model process, waited for where it is just being started."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            children = psutil.Process(self.process.pid).children()
            if children:
                return children[0]
            time.sleep(0.05)
        raise AssertionError("no model process")


@pytest.fixture(scope="session")
def run_server() -> Callable[[Path], AbstractContextManager[Served]]:
    """`run_server(home)` runs `potstill serve` in a process of its own."""
    return _run_server


@contextmanager
def _run_server(home: Path) -> Iterator[Served]:
    """Ends the server by SIGTERM and holds it to its promise: status 0, and nothing that it started is left."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(home)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"serve ended with status {process.wait(10)}"
        yield Served(json.loads(line)["url"], process, home)
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            wait_until(
                lambda: all(process_started_at(child.pid) is None for child in children), lambda: "it left an orphan", 1
            )
            assert list((home / "serving").glob("*.ready")) == []
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, release_tiny: Callable[[Path, int], Release]) -> Iterator[Served]:
    """A server with two releases of "tiny": the champion is the second."""
    home = tmp_path_factory.mktemp("home")
    release_tiny(home, 0)
    release_tiny(home, 1)
    with _run_server(home) as server:
        yield server
