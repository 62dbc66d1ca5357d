"""DPO inside the training child, after SFT: the SFT adapter goes on, and a frozen copy of it is the reference.

`loss_type=["sigmoid", "sft"]` keeps the student near the teacher's answers, since the pairs are off-policy
(Rafailov et al. 2023; RPO, Pang et al. 2024).
"""

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from potstill.records import Preference, read_parquet
from potstill.run_folder import RunFolder
from potstill.student.generator import load_tokenizer
from potstill.training.sft import load_base
from potstill.training.spec import TrainingSpec, TrainingStatus
from potstill.training.trainer import Recorder, common_arguments, run_trainer

SFT_WEIGHT = 0.5


def train_dpo(spec: TrainingSpec, folder: RunFolder) -> TrainingStatus:
    """Train the SFT adapter on preference pairs."""
    dpo, adapter = spec.config.dpo, spec.adapter
    assert dpo is not None
    assert adapter is not None
    pairs = [_row(pair) for pair in read_parquet(Path(spec.rows), Preference)]

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
            train_dataset=Dataset.from_list(pairs),
            processing_class=load_tokenizer(spec.base, spec.revision),
            callbacks=[recorder],
        )

    return run_trainer(make, spec, folder)


def _row(pair: Preference) -> dict[str, Any]:
    return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
