"""Real trainings of a tiny student: they learn, and whatever kills them, they go on with the same losses."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from potstill.artifacts import ArtifactRef, ArtifactStore, StageKey
from potstill.errors import DataError, SubprocessError
from potstill.evaluation.generate import Adapter, generate
from potstill.recipe import Dpo, Evaluation, Student, Training
from potstill.records import Completion, Prompt, Usage, read_parquet, write_parquet
from potstill.student.base import Base, resolve_base
from potstill.subprocesses import process_started_at
from potstill.training import launch
from potstill.training.examples import assemble_lines, assemble_preferences

pytestmark = pytest.mark.flow

CONFIG = Training(
    epochs=8, learning_rate=5e-3, batch_size=16, max_length=128, lora_rank=16, lora_alpha=32, checkpoint_steps=5
)
TRAIN = """
import sys
from pathlib import Path
from potstill.artifacts import ArtifactStore, load_artifact
from potstill.recipe import Student, Training
from potstill.student.base import resolve_base
from potstill.training.launch import train_sft
store = ArtifactStore(Path(sys.argv[1]))
base = resolve_base(Student(base=sys.argv[2]), store)
train_sft(load_artifact(Path(sys.argv[3]), "SFTDataset"), base, Training.model_validate_json(sys.argv[4]), store)
"""


def lines(count: int) -> list[tuple[Prompt, Completion]]:
    made = []
    for number in range(count):
        label = "billing" if number % 2 else "technical"
        word = "refund" if number % 2 else "crash"
        prompt = Prompt(
            prompt_id=f"{number:032x}",
            messages=[{"role": "user", "content": f"please help my {word} is {'why the ' * (number % 5)}"}],
            task_kind="classification",
            workload="",
            group_id=str(number),
            split="test" if number % 7 == 0 else "train",
            source="log:1",
        )
        answer = {"role": "assistant", "content": label}
        completion = Completion(
            prompt_id=prompt.prompt_id,
            teacher="t",
            completion=label,
            message=answer,
            finish_reason="stop",
            usage=Usage(),
        )
        made.append((prompt, completion))
    return made


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home")


@pytest.fixture
def dataset(store: ArtifactStore) -> ArtifactRef:
    return assemble_lines(lines(300), store)


@pytest.fixture
def base(tiny_base: Path, store: ArtifactStore) -> Base:
    return resolve_base(Student(base=str(tiny_base)), store)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> list[float]:
    """The losses of a training that nothing disturbs, 17 steps an epoch."""
    store = ArtifactStore(tmp_path_factory.mktemp("uninterrupted"))
    base = resolve_base(Student(base=str(tiny_base)), store)
    return losses(store, launch.train_sft(assemble_lines(lines(300), store), base, CONFIG, store))


def losses(store: ArtifactStore, ref: ArtifactRef) -> list[float]:
    return [point.loss for point in launch.read_curve(store.path(ref)) if point.loss is not None]


def test_a_student_learns_what_the_teacher_answers(store: ArtifactStore, dataset: ArtifactRef, base: Base) -> None:
    student = launch.train_sft(dataset, base, CONFIG, store)

    def produce(directory: Path) -> int:
        return write_parquet(directory / "prompts.parquet", (prompt for prompt, _ in lines(300)), Prompt)

    prompts = store.build(StageKey("curate", 1, "0" * 64), "PromptSet", produce)
    adapter = Adapter(directory=str(store.path(student) / "adapter"), digest=student.digest)
    answers = generate(prompts, base, adapter, Evaluation(max_tokens=8, batch_size=50), store)
    truth = {prompt.prompt_id: completion.completion for prompt, completion in lines(300)}
    given = list(read_parquet(store.path(answers) / "completions.parquet", Completion))
    assert len(given) == 43
    assert sum(row.completion == truth[row.prompt_id] for row in given) >= 41
    assert not list((store.path(student) / "adapter").glob("*.bin")), "nothing pickled leaves a training"


def test_killed_training_goes_on_from_its_checkpoint_with_the_same_losses(
    store: ArtifactStore, dataset: ArtifactRef, base: Base, uninterrupted: list[float]
) -> None:
    killed: list[int] = []

    def kill(point: launch.Point) -> None:
        if point.step >= 22 and not killed:
            for process in psutil.process_iter(["pid", "cmdline"]):
                command = process.info["cmdline"] or []
                if (
                    "potstill.training.run" in command
                    and str(store.root) in command[-1]
                    and "accelerate" not in str(command)
                ):
                    killed.append(process.pid)
                    process.kill()

    with pytest.raises(SubprocessError):
        launch.train_sft(dataset, base, CONFIG, store, on_point=kill)
    assert killed
    whole = (store.root / "runs" / "train").glob("*/checkpoints/checkpoint-*/is-whole")
    saved = max(int(path.parent.name.rpartition("-")[2]) for path in whole)
    assert 17 < saved < 136, "after the first epoch and before the end"
    assert saved % 17, "within an epoch"
    resumed = launch.train_sft(dataset, base, CONFIG, store)
    assert launch.read_status(store.path(resumed)).resumed_from_step == saved
    assert losses(store, resumed) == pytest.approx(uninterrupted, abs=1e-4)


def test_an_interrupted_training_saves_where_it_is_and_goes_on_from_there(
    store: ArtifactStore, dataset: ArtifactRef, base: Base, uninterrupted: list[float]
) -> None:
    config = CONFIG.model_copy(update={"checkpoint_steps": 1000})

    def interrupt(point: launch.Point) -> None:
        if point.step >= 36:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch.train_sft(dataset, base, config, store, on_point=interrupt)
    resumed = launch.train_sft(dataset, base, config, store)
    status = launch.read_status(store.path(resumed))
    assert 36 <= status.resumed_from_step < status.steps
    assert losses(store, resumed) == pytest.approx(uninterrupted, abs=1e-4)


@pytest.mark.parametrize("whole_group", [False, True])
def test_no_orphan_is_left_when_the_parent_is_killed(
    whole_group: bool, tiny_base: Path, store: ArtifactStore, dataset: ArtifactRef
) -> None:
    arguments = [str(store.root), str(tiny_base), str(store.path(dataset)), CONFIG.model_dump_json()]
    parent = subprocess.Popen([sys.executable, "-c", TRAIN, *arguments], start_new_session=True)
    try:
        run = store.root / "runs" / "train"
        _wait_for(lambda: any(path.stat().st_size for path in run.glob("*/progress.jsonl")))
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2, "the launcher and the trainer"
        if whole_group:
            os.killpg(parent.pid, signal.SIGKILL)
    finally:
        parent.kill()
        parent.wait()
    _wait_for(lambda: all(process_started_at(child.pid) is None for child in children), 10)


def test_dpo_goes_on_from_the_sft_adapter(store: ArtifactStore, dataset: ArtifactRef, base: Base) -> None:
    config = CONFIG.model_copy(update={"epochs": 1, "dpo": Dpo(epochs=1, learning_rate=1e-3)})
    sft = launch.train_sft(dataset, base, config, store)
    rejected = [
        c.model_copy(update={"completion": "why", "message": {"role": "assistant", "content": "why"}})
        for _, c in lines(300)
    ]

    def produce(directory: Path) -> int:
        return write_parquet(directory / "completions.parquet", rejected, Completion)

    outputs = store.build(StageKey("generate", 1, "1" * 64), "Completions", produce)
    pairs = assemble_preferences(dataset, outputs, 64, store)
    tuned = launch.train_dpo(pairs, sft, base, config, store)
    assert launch.read_status(store.path(tuned)).examples == 64
    assert tuned.digest != sft.digest
    curve = losses(store, tuned)
    assert curve[-1] < curve[0]


def test_parts_tools_and_answers_without_text_are_trained_on_beside_plain_messages(
    store: ArtifactStore, base: Base
) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {}}]}
    mixed = lines(30)
    for number, (prompt, completion) in enumerate(mixed):
        text = prompt.messages[0]["content"]
        in_parts = {"role": "user", "content": [{"type": "text", "text": text}]}
        more = {"messages": [call, in_parts]} if number % 3 else {"tools": tools}
        mixed[number] = (prompt.model_copy(update=more), completion)
    config = CONFIG.model_copy(update={"epochs": 1, "max_length": 256})
    student = launch.train_sft(assemble_lines(mixed, store), base, config, store)
    assert launch.read_status(store.path(student)).examples == 25


def test_data_that_fits_no_example_is_a_fault_of_the_data(
    store: ArtifactStore, dataset: ArtifactRef, base: Base
) -> None:
    with pytest.raises(DataError, match="max_length 16"):
        launch.train_sft(dataset, base, CONFIG.model_copy(update={"max_length": 16, "seed": 1}), store)


def _wait_for(happened: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)
