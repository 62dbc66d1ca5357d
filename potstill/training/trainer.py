"""What SFT and DPO share inside the training child: settings, checkpoints that are whole, and the curve."""

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from potstill.run_folder import RunFolder
from potstill.student.precision import compute_dtype
from potstill.subprocesses import PARENT_GONE
from potstill.training.spec import CHECKPOINTS, OUTPUT, Point, TrainingSpec, TrainingStatus

WHOLE = "is-whole"
"""A file that is written after everything else of a checkpoint."""


class Recorder(TrainerCallback):
    """Appends the curve to `progress.jsonl` and marks checkpoints that are whole."""

    def __init__(self, folder: RunFolder) -> None:
        self._file = folder.progress.open("ab", buffering=0)
        self._started = time.monotonic()
        self._first_tokens: float | None = None
        self.tokens = 0

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the trainer's signature
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 - same
        logs: dict[str, float] | None = None,
        **kwargs: Any,  # noqa: ARG002 - same
    ) -> None:
        logs = logs or {}
        elapsed = time.monotonic() - self._started
        seen = logs.get("num_tokens")
        if seen is not None:
            self.tokens = int(seen)
            self._first_tokens = seen if self._first_tokens is None else self._first_tokens
        point = Point(
            step=state.global_step,
            total_steps=state.max_steps,
            loss=logs.get("loss"),
            validation_loss=logs.get("eval_loss"),
            tokens_per_second=(seen - self._first_tokens) / elapsed if seen and self._first_tokens else None,
            elapsed_seconds=elapsed,
        )
        if point.loss is not None or point.validation_loss is not None:
            self._file.write(orjson.dumps(point.model_dump(mode="json")) + b"\n")

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 - the trainer's signature
        **kwargs: Any,  # noqa: ARG002 - same
    ) -> None:
        assert args.output_dir is not None
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()


def common_arguments(spec: TrainingSpec) -> dict[str, Any]:
    """The settings that every method shares; what is decided here is said in docs/training.md."""
    import torch

    config = spec.config
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(Path(spec.run_dir) / CHECKPOINTS),
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "lr_scheduler_type": "linear",
        "seed": config.seed,
        "data_seed": config.seed,
        "max_length": config.max_length,
        "bf16": on_gpu and compute_dtype() == torch.bfloat16,  # on a CPU autocast costs more than it saves
        "use_cpu": not on_gpu,
        "activation_checkpointing": on_gpu,
        "dataloader_pin_memory": on_gpu,
        "logging_steps": 1,
        "save_steps": config.checkpoint_steps,
        "save_total_limit": 2,
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": True,
    }


class CheckpointOnStop(TrainerCallback):
    """After SIGTERM, saves at the end of the step and ends the training."""

    def __init__(self) -> None:
        self.is_stopped = False
        signal.signal(signal.SIGTERM, self._stop)

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the trainer's signature
        state: TrainerState,  # noqa: ARG002 - same
        control: TrainerControl,
        **kwargs: Any,  # noqa: ARG002 - same
    ) -> None:
        if self.is_stopped:
            control.should_save = True
            control.should_training_stop = True

    def _stop(self, *_: object) -> None:
        self.is_stopped = True


def last_checkpoint(spec: TrainingSpec) -> Path | None:
    """The newest checkpoint that is whole; those that are not are removed."""
    whole: list[tuple[int, Path]] = []
    for path in Path(spec.run_dir, CHECKPOINTS).glob("checkpoint-*"):
        if (path / WHOLE).exists():
            whole.append((int(path.name.rpartition("-")[2]), path))
        else:
            shutil.rmtree(path)
    return max(whole)[1] if whole else None


def run_trainer(make: Callable[[Recorder], Any], spec: TrainingSpec, folder: RunFolder) -> TrainingStatus:
    """Train, from the last whole checkpoint where there is one, and save the adapter with its tokenizer."""
    checkpoint = last_checkpoint(spec)
    if checkpoint is None:
        folder.progress.unlink(missing_ok=True)
    recorder = Recorder(folder)
    trainer = make(recorder)
    stop = CheckpointOnStop()
    trainer.add_callback(stop)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.is_stopped and trainer.state.global_step < trainer.state.max_steps:
        print(f"stopped at step {trainer.state.global_step}", flush=True)  # noqa: T201 - the child's log
        raise SystemExit(PARENT_GONE)
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    output = folder.path / OUTPUT
    shutil.rmtree(output, ignore_errors=True)
    for config in trainer.model.peft_config.values():
        config.target_modules = sorted(config.target_modules)  # a set: every process would write another order
    trainer.save_model(str(output))
    (output / "training_args.bin").unlink(missing_ok=True)  # a pickle: nothing here is ever unpickled
    return TrainingStatus(
        steps=trainer.state.global_step,
        examples=len(trainer.train_dataset),
        resumed_from_step=int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0,
        tokens=recorder.tokens,
    )
