"""Which weights a training keeps: those of the epoch that did best on images that it did not learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.attacks import attack_named, pgd
from prunekit.errors import InputError
from prunekit.training.config import TrainConfig
from prunekit.training.data import TrainingData, placed, seeded
from prunekit.training.objectives import UNATTACKED, Objective

#: Every tenth image is held out where the data set has no holdout of its own.
HOLDOUT_EVERY = 10
#: More images say little more, and each of them is attacked after every epoch.
HOLDOUT_IMAGES = 512

# Returns a model's loss on the holdout.
Judge = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Part:
    """Some of the images of a data set.

    Attributes:
        data: The data set.
        indices: Of the images.
    """

    data: TrainingData
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, order: Sequence[int], batch_size: int, workers: int) -> Iterator[tuple[Tensor, Any]]:
        """Yield batches of the part's images."""
        return self.data.batches([self.indices[i] for i in order], batch_size, workers)


def held_out(data: TrainingData) -> tuple[TrainingData, TrainingData]:
    """Split a data set into what to learn from and every tenth image, to select by.

    Raises:
        InputError: There are not ten.
    """
    if len(data) < HOLDOUT_EVERY:
        raise InputError(f"Expected at least {HOLDOUT_EVERY} training images to hold one out, got {len(data)}.")
    chosen = range(HOLDOUT_EVERY - 1, len(data), HOLDOUT_EVERY)
    return Part(data, [i for i in range(len(data)) if i not in chosen]), Part(data, chosen)


@dataclass(frozen=True)
class HoldoutLoss:
    """The mean loss on a holdout, of up to `HOLDOUT_IMAGES` images, under the attack that an objective prepares for.

    Each image is attacked from the same random start every time; the objectives `Clean` and `Smoothing`, which know no
    attack, are judged by the clean loss, and a pool of attacks by the mean over all of them.

    Attributes:
        holdout: The images.
        objective: Of the training.
        config: Of the training; batch size, seed and device are taken from it.
    """

    holdout: TrainingData
    objective: Objective
    config: TrainConfig

    def __call__(self, model: nn.Module) -> float:
        """Return the loss of a model in eval mode."""
        count = min(len(self.holdout), HOLDOUT_IMAGES)
        order = [number * len(self.holdout) // count for number in range(count)]
        generator = seeded(self.config.seed, "holdout", 0, self.config.device)
        batches = self.holdout.batches(order, self.config.batch_size, 0)
        return sum(self._losses(model, *batch, generator) for batch in batches) / count

    def _losses(self, model: nn.Module, x: Tensor, targets: Any, generator: torch.Generator) -> float:
        x, targets = placed(x, targets, self.config.device)
        attacked = self._attacked(model, x, targets, generator)
        with torch.no_grad():
            sums = [float(self.objective.task.loss(model, images, targets).sum()) for images in attacked]
        return sum(sums) / len(sums)

    def _attacked(self, model: nn.Module, x: Tensor, targets: Any, generator: torch.Generator) -> list[Tensor]:
        """Return the images under the attack, or under each one of a pool."""
        config, task = self.objective.config, self.objective.task
        if isinstance(self.objective, UNATTACKED):
            return [x]
        if config.pool:
            return [attack_named(name)(model, x, task.attack_losses(targets), generator) for name in config.pool]
        return [pgd(model, x, self.objective.loss_of(targets), config.attack, generator)]
