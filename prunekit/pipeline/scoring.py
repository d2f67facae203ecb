"""Scores of every weight, from the weights alone or from images that are learnt from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunekit.attacks import PgdConfig, pgd
from prunekit.detection import Detector
from prunekit.detection.attribution_target import matched_logits
from prunekit.errors import InputError
from prunekit.progress import Progress
from prunekit.prune import score_model, score_named, taylor_scores
from prunekit.prune.deeplift import Comparison, data_mean, deeplift_scores
from prunekit.training.data import TrainingData
from prunekit.training.tasks import Task, detector_task

REFERENCES = ("zeros", "mean", "clean")
Batches = Iterator[tuple[Tensor, Any]]


@dataclass(frozen=True)
class ScoreChoices:
    """How scores that look at images do it.

    Attributes:
        name: A key of `SCORES`.
        images: How many images, the first of a seeded shuffle.
        batch_size: Images at once.
        reference: DeepLIFT's: "zeros", the data's "mean", or "clean", the clean image of an attacked one.
        rule: DeepLIFT's: "rescale" or "reveal_cancel".
        seed: Of the choice of images and of random scores.
    """

    name: str
    images: int = 256
    batch_size: int = 8
    reference: str = "zeros"
    rule: str = "rescale"
    seed: int = 0


def make_scores(
    model: Detector, choices: ScoreChoices, data: TrainingData | None, attack: PgdConfig | None, progress: Progress
) -> dict[str, Tensor]:
    """Score every weight of a detector's convolutions.

    Args:
        model: The detector, in eval mode.
        choices: Which scores, and how.
        data: The images, for scores that look at some.
        attack: What attacks them, for DeepLIFT with the reference "clean".
        progress: Shown batch by batch.

    Returns:
        Layer name → scores of its weight's shape, [K, C, R, S].

    Raises:
        CompletenessError: When DeepLIFT's contributions do not add up.
        InputError: For scores or a reference that are not known; the sentence lists those that are.
    """
    if not score_named(choices.name).needs_batches:
        return score_model(model, choices.name, choices.seed)
    if choices.name not in IMAGE_SCORES:
        raise InputError(f"Expected scores from images to be one of {', '.join(IMAGE_SCORES)}, got {choices.name!r}.")
    if choices.reference not in REFERENCES:
        raise InputError(f"Expected the reference to be one of {', '.join(REFERENCES)}, got {choices.reference!r}.")
    assert data is not None  # the stage has made sure
    return IMAGE_SCORES[choices.name](model, _batches(choices, data, progress), choices, attack)


def _taylor(model: Detector, batches: Batches, choices: ScoreChoices, attack: PgdConfig | None) -> dict[str, Tensor]:
    task = detector_task(model)
    return taylor_scores(model, ((x, _loss_of(task, targets)) for x, targets in batches))


def _deeplift(model: Detector, batches: Batches, choices: ScoreChoices, attack: PgdConfig | None) -> dict[str, Tensor]:
    return deeplift_scores(model, _comparisons(model, batches, choices, attack), rule=choices.rule)  # type: ignore[arg-type]


#: Scores that look at images → what makes them. A score that `SCORES` has and this table has not is an error.
IMAGE_SCORES: dict[str, Callable[[Detector, Batches, ScoreChoices, PgdConfig | None], dict[str, Tensor]]] = {
    "taylor": _taylor,
    "deeplift": _deeplift,
}


def _batches(choices: ScoreChoices, data: TrainingData, progress: Progress) -> Batches:
    """Yield images, float [N, 3, S, S] in [0, 1], with their targets."""
    generator = torch.Generator().manual_seed(choices.seed)
    order = torch.randperm(len(data), generator=generator)[: choices.images].tolist()
    total = -(-len(order) // choices.batch_size)
    loaded = data.batches(order, choices.batch_size, workers=0)
    for x, targets in progress.track(loaded, f"{choices.name} scores", total):
        yield (x.float() / 255 if x.dtype == torch.uint8 else x), targets


def _comparisons(
    model: Detector, batches: Batches, choices: ScoreChoices, attack: PgdConfig | None
) -> Iterator[Comparison]:
    mean: Tensor | None = None
    if choices.reference == "mean":
        listed = list(batches)
        mean = data_mean(x for x, _ in listed)
        batches = iter(listed)
    for x, targets in batches:
        target = _target(model, targets)
        if choices.reference == "clean":
            yield Comparison(_attacked(model, x, targets, attack, choices.seed), x, target)
        else:
            yield Comparison(x, torch.zeros_like(x[:1]) if mean is None else mean, target)


def _loss_of(task: Task, targets: Any) -> Callable[[Any], Tensor]:
    return lambda outputs: task.loss_per_image(outputs, targets)


def _target(model: Detector, targets: Any) -> Callable[[Any], Tensor]:
    return lambda outputs: matched_logits(outputs, targets, model.anchors, model.strides, model.num_classes)


def _attacked(model: Detector, x: Tensor, targets: Any, attack: PgdConfig | None, seed: int) -> Tensor:
    assert attack is not None  # images to learn from come with one
    generator = torch.Generator().manual_seed(seed)
    return pgd(model, x, _loss_of(detector_task(model), targets), attack, generator)
