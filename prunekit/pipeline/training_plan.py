"""From a configuration, a run's or one stage's, to what stages that train and score are given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prunekit.attacks import PgdConfig, attack_named
from prunekit.pipeline.checkpoint import Training
from prunekit.pipeline.config import RunConfig, ScoringChoices, TrainingChoices
from prunekit.pipeline.scoring import ScoreChoices
from prunekit.progress import Progress
from prunekit.task import Data, Task
from prunekit.training.augment import NO_AUGMENTATION, AugmentConfig
from prunekit.training.config import SCORE_OPTIMIZATIONS, TrainConfig
from prunekit.training.data import ImagesOnDisk, TrainingData, read_into_memory
from prunekit.training.objectives import ObjectiveConfig

# Larger data sets are read from disk in every epoch.
MAX_BYTES_IN_MEMORY = 2**30


def make_training(config: TrainingChoices, dataset: Data, sha256: str, progress: Progress) -> Training:
    """Bind the training data to the objective."""
    data = images_to_learn_from(dataset, progress)
    return Training(data, sha256, config.objective, ObjectiveConfig(attack=preset(config.train_attack)))


def images_to_learn_from(dataset: Data, progress: Progress) -> TrainingData:
    """Read a data set into memory if it is small enough."""
    num_bytes = len(dataset) * 3 * dataset.image_size**2
    return read_into_memory(dataset, progress) if num_bytes <= MAX_BYTES_IN_MEMORY else ImagesOnDisk(dataset)


def preset(name: str) -> PgdConfig:
    """Return a PGD preset; configurations have made sure that the name is one's."""
    attack = attack_named(name)
    assert isinstance(attack, PgdConfig)
    return attack


def pretraining(config: RunConfig, task: Task) -> TrainConfig:
    """Return the knobs of robust pre-training."""
    return training_of_weights(config, task, max(1, config.pretrain_epochs), config.pretrain_learning_rate)


def finetuning(config: RunConfig, task: Task) -> TrainConfig:
    """Return the knobs of fine-tuning."""
    return training_of_weights(config, task, max(1, config.finetune_epochs), config.finetune_learning_rate)


def score_optimization(config: RunConfig, task: Task) -> TrainConfig:
    """Return the knobs of optimizing scores."""
    rate = config.optimize_learning_rate
    return training_of_scores(config, task, config.score_optimizer, config.optimize_epochs, rate)


def training_of_weights(config: TrainingChoices, task: Task, epochs: int, learning_rate: float) -> TrainConfig:
    """Return the knobs for training weights so long at this peak."""
    return TrainConfig(epochs=epochs, learning_rate=learning_rate, **_shared(config, task))


def training_of_scores(
    config: TrainingChoices, task: Task, optimizer: str, epochs: int, learning_rate: float | None
) -> TrainConfig:
    """Return the knobs for scores, with the configuration's batches.

    Args:
        config: Batches, seed and the like.
        task: How images vary.
        optimizer: A key of `SCORE_OPTIMIZATIONS`.
        epochs: Passes over the data.
        learning_rate: The peak; None takes the optimizer's.
    """
    knobs = SCORE_OPTIMIZATIONS[optimizer]
    peak = knobs.learning_rate if learning_rate is None else learning_rate
    return replace(knobs, epochs=epochs, learning_rate=peak, **_shared(config, task))


def score_choices(config: ScoringChoices, name: str) -> ScoreChoices:
    """Return how one kind of scores is made."""
    return ScoreChoices(name, config.score_images, config.batch_size, config.reference, config.rule, config.seed)


def _shared(config: TrainingChoices, task: Task) -> dict[str, Any]:
    return {
        "max_steps": config.max_steps,
        "batch_size": config.train_batch_size,
        "batch_norm": config.batch_norm,
        "precision": config.precision,
        "augmentation": AugmentConfig(**task.augmentation) if config.augment else NO_AUGMENTATION,
        "seed": config.seed,
        "checkpoint_every": config.checkpoint_every,
        "workers": config.workers,
        "device": config.device,
    }
