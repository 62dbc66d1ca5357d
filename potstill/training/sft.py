"""SFT inside the training child: LoRA on all linear layers, loss on the completion only (TRL's SFTTrainer)."""

from pathlib import Path
from typing import Any, NamedTuple

import orjson
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl.trainer import utils as trl_utils
from trl.trainer.sft_config import SFTConfig

from potstill.errors import DataError
from potstill.messages import as_text
from potstill.records import Example, read_parquet
from potstill.run_folder import RunFolder
from potstill.student.generator import Conversation, load_tokenizer, render_prompt
from potstill.student.precision import compute_dtype
from potstill.training.sampling import ResumableSFTTrainer
from potstill.training.spec import TrainingSpec, TrainingStatus
from potstill.training.trainer import Recorder, common_arguments, run_trainer

CLOSING_TOKENS = 2


class FittingRows(NamedTuple):
    train: Dataset
    validation: Dataset | None
    dropped_too_long: int


def score_completions_only() -> None:
    """Make TRL's fused head project the completion's positions only, on every device.

    Off Triton it projects the prompt's positions too and masks them afterwards (meant for devices that recompile for
    every shape): the same loss, for 45 % of a step on a CPU where the completion is a label. See docs/LOG.md.
    """
    trl_utils._use_triton = lambda _device: True  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def train_sft(spec: TrainingSpec, folder: RunFolder) -> TrainingStatus:
    """Train one adapter. Errors: `DataError` where no example fits `max_length`."""
    score_completions_only()
    tokenizer = load_tokenizer(spec.base, spec.revision)
    rows = _load_rows(spec, tokenizer)

    def make(recorder: Recorder) -> ResumableSFTTrainer:
        arguments = SFTConfig(
            **common_arguments(spec),
            learning_rate=spec.config.learning_rate,
            num_train_epochs=spec.config.epochs,
            train_sampling_strategy="group_by_length",
            packing=False,
        )
        return ResumableSFTTrainer(
            model=load_base(spec),
            args=arguments,
            train_dataset=rows.train,
            eval_dataset=rows.validation,
            processing_class=tokenizer,
            peft_config=lora_config(spec),
            callbacks=[recorder],
        )

    status = run_trainer(make, spec, folder)
    return status.model_copy(update={"dropped_too_long": rows.dropped_too_long})


def load_base(spec: TrainingSpec) -> Any:
    """The base, frozen."""
    torch.manual_seed(spec.config.seed)
    return AutoModelForCausalLM.from_pretrained(
        spec.base, revision=spec.revision, dtype=compute_dtype(), trust_remote_code=False, use_safetensors=True
    )


def lora_config(spec: TrainingSpec) -> LoraConfig:
    """LoRA as vLLM can serve it: no DoRA, no saved modules."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.config.lora_rank,
        lora_alpha=spec.config.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
    )


def fits(tokenizer: Any, text: str, max_length: int) -> bool:
    """Whether a rendered prompt with its answer, and the tokens that close it, is short enough to be learnt whole."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + CLOSING_TOKENS <= max_length


def as_dataset(rows: list[dict[str, Any]]) -> Dataset:
    """The rows for TRL; without the column `tools` where no row has any."""
    dataset = Dataset.from_list(rows)
    return dataset if any(row["tools"] for row in rows) else dataset.remove_columns("tools")


def _load_rows(spec: TrainingSpec, tokenizer: Any) -> FittingRows:
    fitting: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    dropped = 0
    for example in read_parquet(Path(spec.rows), Example):
        prompt = render_prompt(tokenizer, Conversation(example.prompt, example.tools))
        answer = str(example.completion[0].get("content") or "")
        if not fits(tokenizer, prompt + answer, spec.config.max_length):
            dropped += 1
            continue
        fitting[example.split].append(
            {
                "prompt": [as_text(message) for message in example.prompt],
                "completion": [as_text(message) for message in example.completion],
                "tools": orjson.dumps(example.tools).decode() if example.tools else None,
            }
        )
    if not fitting["train"]:
        raise DataError(f"none of {dropped} examples fits training.max_length {spec.config.max_length}: raise it")
    validation = as_dataset(fitting["validation"]) if fitting["validation"] else None
    return FittingRows(as_dataset(fitting["train"]), validation, dropped)
