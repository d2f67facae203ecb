"""What share of images is classified correctly wherever in its ball an image is, proven by bounds."""

from __future__ import annotations

import copy

from prunekit.errors import InputError
from prunekit.evaluation.evaluate import Subject
from prunekit.task import LabelsImages, Task
from prunekit.verification import verified_margins


def labels_images(task: Task, option: str) -> LabelsImages:
    """Return the task, if it is a classifier's; InputError, which names the option, for another one."""
    if not isinstance(task, LabelsImages):
        raise InputError(f"{option}: expected a classifier, got {task.spec.name}.")
    return task


def verify(subject: Subject, eps: float) -> dict[int, float]:
    """Return each image's least margin over the L∞ ball of radius eps, bounded from below, by image id.

    Computed in float64, so that rounding has no say in practice.

    Args:
        subject: A classifier, which is copied, and images with their classes.
        eps: The radius, for pixels in [0, 1].
    """
    labels, precise = labels_images(subject.task, "--verify"), copy.deepcopy(subject.model).double()
    margins: dict[int, float] = {}
    for batch in subject.batches(f"verifying at eps {eps:.3g}"):
        found = verified_margins(precise, batch.images.double(), labels.labels(batch.targets), eps)
        margins |= dict(zip(batch.image_ids, found.tolist(), strict=True))
    return margins


def verified_accuracy(margins: dict[int, float]) -> float:
    """Return the share of images whose margin is positive."""
    return sum(margin > 0 for margin in margins.values()) / len(margins)
