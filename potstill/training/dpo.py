"""DPO inside the training child, after SFT: the SFT adapter goes on, and a frozen copy of it is the reference.

`loss_type=["sigmoid", "sft"]` keeps the student near the teacher's answers, since the pairs are off-policy
(Rafailov et al. 2023; RPO, Pang et al. 2024).
"""

from pathlib import Path
from typing import Any

import orjson
from peft import PeftModel
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from potstill.errors import DataError
from potstill.messages import as_text
from potstill.records import Preference, read_parquet
from potstill.run_folder import RunFolder
from potstill.student.generator import Conversation, load_tokenizer, render_prompt
from potstill.training.sft import as_dataset, fits, load_base
from potstill.training.spec import TrainingSpec, TrainingStatus
from potstill.training.trainer import Recorder, common_arguments, run_trainer

SFT_WEIGHT = 0.5


def train_dpo(spec: TrainingSpec, folder: RunFolder) -> TrainingStatus:
    """Train the SFT adapter on preference pairs. Errors: `DataError` where no pair fits `max_length`."""
    dpo, adapter = spec.config.dpo, spec.adapter
    assert dpo is not None
    assert adapter is not None
    tokenizer = load_tokenizer(spec.base, spec.revision)
    pairs = list(read_parquet(Path(spec.rows), Preference))
    fitting = [_row(pair) for pair in pairs if _fits(pair, tokenizer, spec.config.max_length)]
    if not fitting:
        raise DataError(f"none of {len(pairs)} pairs fits training.max_length {spec.config.max_length}: raise it")

    def make(recorder: Recorder) -> DPOTrainer:
        arguments = DPOConfig(
            **common_arguments(spec),
            learning_rate=dpo.learning_rate,
            num_train_epochs=dpo.epochs,
            beta=dpo.beta,
            loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, SFT_WEIGHT],
        )
        return DPOTrainer(
            model=PeftModel.from_pretrained(load_base(spec), adapter, is_trainable=True),  # pyright: ignore[reportArgumentType]
            args=arguments,
            train_dataset=as_dataset(fitting),
            processing_class=tokenizer,
            callbacks=[recorder],
        )

    status = run_trainer(make, spec, folder)
    return status.model_copy(update={"dropped_too_long": len(pairs) - len(fitting)})


def _fits(pair: Preference, tokenizer: Any, max_length: int) -> bool:
    prompt = render_prompt(tokenizer, Conversation(pair.prompt, pair.tools))
    answers = (as_text(side[0])["content"] for side in (pair.chosen, pair.rejected))
    return all(fits(tokenizer, prompt + answer, max_length) for answer in answers)


def _row(pair: Preference) -> dict[str, Any]:
    sides = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    texts = {name: [as_text(message) for message in messages] for name, messages in sides.items()}
    return {**texts, "tools": orjson.dumps(pair.tools).decode() if pair.tools else None}
