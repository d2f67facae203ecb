"""How sensitive each module of a model is: its robustness on images that a task's attack made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from pydantic import Field
from torch import nn

from prunekit.attacks import PRESETS, attack_named
from prunekit.config import Config
from prunekit.progress import Progress, SilentProgress
from prunekit.prune.sensitivity import Attacked, Sensitivity, robustness_sensitivities
from prunekit.task import Task
from prunekit.training.data import TrainingData, device_of, placed, seeded

METHODS = ("exact", "fast")


class SensitivityConfig(Config):
    """How module robustness sensitivities are measured; the defaults are RiFT's."""

    method: str = Field(
        "exact", description="exact: by projected ascent; fast: to first order, one pass for all modules"
    )
    eps: float = Field(0.1, gt=0, description="radius in which a module's weight moves, relative to its norm")
    passes: int = Field(10, ge=1, description="gradients over all images that the ascent takes for each module")
    images: int = Field(512, ge=1, description="number of training images, attacked once and then held fixed")
    attack: str = Field("hydra", description=f"attack on those images: {', '.join(PRESETS)}")
    batch_size: int = Field(64, ge=1, description="images a batch")


def module_robustness_sensitivity(
    model: nn.Module,
    task: Task,
    data: TrainingData,
    config: SensitivityConfig | None = None,
    *,
    seed: int = 0,
    done: Mapping[str, Sensitivity] | None = None,
    save: Callable[[Mapping[str, Sensitivity]], None] = lambda found: None,
    progress: Progress | None = None,
) -> dict[str, Sensitivity]:
    """Measure the sensitivity of each convolution and linear layer; the same numbers for the same seed.

    Args:
        model: The model, in eval mode; it is left as it was.
        task: What it is made for.
        data: Training images that it was not chosen by, if there are such.
        config: How to measure.
        seed: What the images are drawn by, and the attack's random starts.
        done: What an interrupted call saved, to go on from.
        save: Called with all that is known after each module.
        progress: Shown module by module.

    Returns:
        Module name → its sensitivity, in the model's order.

    Raises:
        InputError: When there is no image, or the loss is not finite.
    """
    config, progress = config or SensitivityConfig(), progress or SilentProgress()
    attacked = list(_attacked(model, task, data, config, seed, progress))

    def track(names: Iterable[str], total: int) -> Iterable[str]:
        return progress.track(names, "sensitivities", total)

    return robustness_sensitivities(
        model,
        attacked,
        eps=config.eps,
        passes=config.passes if config.method == "exact" else 0,
        done=done,
        save=save,
        track=track,
    )


def _attacked(
    model: nn.Module, task: Task, data: TrainingData, config: SensitivityConfig, seed: int, progress: Progress
) -> Iterable[Attacked]:
    """Attack a seeded choice of images, each batch by random numbers of its own."""
    attack, device = attack_named(config.attack), device_of(model)
    order = torch.randperm(len(data), generator=seeded(seed, "sensitivity", 0))[: config.images].tolist()
    batches = data.batches(order, config.batch_size, workers=0)
    total = -(-len(order) // config.batch_size)
    for number, (x, targets) in enumerate(progress.track(batches, "attacking for sensitivities", total)):
        x, targets = placed(x, targets, device)
        losses = task.attack_losses(targets)
        x_adv = attack(model, x, losses, seeded(seed, "attack for sensitivities", number, device))
        yield x_adv, losses.total
