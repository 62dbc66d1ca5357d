"""The order of training: one for each seed and epoch, so that a resumed run goes on with the batches of an uninterrupted one."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.trainer.sft_trainer import SFTTrainer


class OrderedByEpoch(Sampler[int]):
    """Draws each epoch's order from the seed and the number of the epoch.

    Transformers' own sampler draws it from the global generator, whose state at the start of an epoch is lost to a run that
    resumes within that epoch: from the second epoch on it would see other batches.
    """

    def __init__(self, sampler: LengthGroupedSampler, trainer: "ResumableSFTTrainer") -> None:
        self._sampler = sampler
        self._trainer = trainer

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        epoch = int((self._trainer.state.epoch or 0) + 1e-6)
        self._sampler.generator = torch.Generator().manual_seed(self._trainer.args.seed + epoch)
        return iter(self._sampler)


class ResumableSFTTrainer(SFTTrainer):
    """TRL's trainer with an order that does not depend on when the run was interrupted."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        sampler = super()._get_train_sampler(train_dataset)
        return OrderedByEpoch(sampler, self) if isinstance(sampler, LengthGroupedSampler) else sampler
