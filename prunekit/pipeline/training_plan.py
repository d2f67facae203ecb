"""From a run's configuration to what its training stages are given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prunekit.attacks import PRESETS, PgdConfig
from prunekit.detection import CocoDataset
from prunekit.pipeline.augmentation import NO_AUGMENTATION, STANDARD_AUGMENTATION
from prunekit.pipeline.config import RunConfig
from prunekit.pipeline.objectives import ObjectiveConfig
from prunekit.pipeline.progress import Progress
from prunekit.pipeline.stages import ScoreChoices, Training
from prunekit.pipeline.train_config import SCORE_OPTIMISATION, TrainConfig
from prunekit.pipeline.training_data import ImagesOnDisk, TrainingData, read_into_memory

# Larger data sets are read from disk in every epoch.
MAX_BYTES_IN_MEMORY = 2**30


def make_training(config: RunConfig, dataset: CocoDataset, sha256: str, progress: Progress) -> Training:
    """Bind the training data to the objective."""
    attack = PRESETS[config.train_attack]
    assert isinstance(attack, PgdConfig)
    num_bytes = len(dataset) * 3 * dataset.image_size**2
    data: TrainingData = ImagesOnDisk(dataset)
    if num_bytes <= MAX_BYTES_IN_MEMORY:
        data = read_into_memory(dataset, progress)
    return Training(data, sha256, config.objective, ObjectiveConfig(attack=attack))


def pretraining(config: RunConfig) -> TrainConfig:
    """Return the knobs of robust pre-training."""
    return _weights(config, config.pretrain_epochs, config.pretrain_learning_rate)


def finetuning(config: RunConfig) -> TrainConfig:
    """Return the knobs of fine-tuning."""
    return _weights(config, config.finetune_epochs, config.finetune_learning_rate)


def score_optimisation(config: RunConfig) -> TrainConfig:
    """Return HYDRA's knobs for the scores, with the configuration's length, rate and batches."""
    return replace(
        SCORE_OPTIMISATION,
        epochs=config.optimise_epochs,
        learning_rate=config.optimise_learning_rate,
        **_shared(config),
    )


def score_choices(config: RunConfig, name: str) -> ScoreChoices:
    """Return how one kind of scores is made."""
    return ScoreChoices(name, config.score_images, config.batch_size, config.reference, seed=config.seed)


def _weights(config: RunConfig, epochs: int, learning_rate: float) -> TrainConfig:
    return TrainConfig(epochs=max(1, epochs), learning_rate=learning_rate, **_shared(config))


def _shared(config: RunConfig) -> dict[str, Any]:
    return {
        "max_steps": config.max_steps,
        "batch_size": config.train_batch_size,
        "batch_norm": config.batch_norm,
        "precision": config.precision,
        "augmentation": STANDARD_AUGMENTATION if config.augment else NO_AUGMENTATION,
        "seed": config.seed,
        "workers": config.workers,
        "device": config.device,
    }
