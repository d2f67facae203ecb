"""What share of images is classified correctly wherever in its ball an image is, proven by bounds."""

from __future__ import annotations

import copy
import math

from torch import nn

from prunekit.errors import InputError
from prunekit.evaluation.evaluate import EvaluationConfig
from prunekit.progress import Progress
from prunekit.task import Data, LabelsImages, Task
from prunekit.training.data import device_of, load_batches
from prunekit.verification import verified_margins


def labels_images(task: Task, option: str) -> LabelsImages:
    """Return the task, if it is a classifier's; InputError, which names the option, for another one."""
    if not isinstance(task, LabelsImages):
        raise InputError(f"{option}: expected a classifier, got {task.spec.name}.")
    return task


def verify(
    model: nn.Module, task: Task, dataset: Data, eps: float, config: EvaluationConfig, progress: Progress
) -> dict[int, float]:
    """Return each image's least margin over the L∞ ball of radius eps, bounded from below, by image id.

    Computed in float64, so that rounding has no say in practice.

    Args:
        model: A classifier, in eval mode; it is copied.
        task: What it is made for.
        dataset: Images with their classes.
        eps: The radius, for pixels in [0, 1].
        config: Batch size and workers.
        progress: Shown batch by batch.
    """
    labels, precise = labels_images(task, "--verify"), copy.deepcopy(model).double()
    margins: dict[int, float] = {}
    batches = load_batches(dataset, config.batch_size, config.workers)
    for loaded in progress.track(batches, f"verifying at eps {eps:.3g}", math.ceil(len(dataset) / config.batch_size)):
        batch = loaded.to(device_of(model))
        found = verified_margins(precise, batch.images.double(), labels.labels(batch.targets), eps)
        margins |= dict(zip(batch.image_ids, found.tolist(), strict=True))
    return margins


def verified_accuracy(margins: dict[int, float]) -> float:
    """Return the share of images whose margin is positive."""
    return sum(margin > 0 for margin in margins.values()) / len(margins)
