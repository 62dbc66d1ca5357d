"""A child for the GPU work pool: one SFT or DPO run. Its result is an artefact; the parent asks the store for it."""

from prefect import flow

from potstill.artifacts import ArtifactRef
from potstill.recipe import Recipe
from tasks.parameters import here, own
from tasks.training import train_dpo, train_sft


@flow(name="train-student", persist_result=True, result_serializer="json")
def train_student(recipe: Recipe, dataset: ArtifactRef, adapter: ArtifactRef | None = None) -> None:
    """Train by SFT on an SFTDataset; with an `adapter`, by DPO on a PreferenceDataset.

    Started again after a crash, it goes on from its last checkpoint.
    """
    if adapter is None:
        train_sft(here(recipe), own(dataset))
    else:
        train_dpo(here(recipe), own(dataset), own(adapter))
