"""Detect on a data set, clean or under attack, and score what was found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from prunekit.attacks import Attack
from prunekit.detection import (
    AveragePrecision,
    Batch,
    CocoDataset,
    Detections,
    Detector,
    decode,
    evaluate_detections,
    nms,
)
from prunekit.detection.attack_losses import attack_losses
from prunekit.pipeline.detection_rates import FalsePositives, confident, false_positives
from prunekit.pipeline.loading import device_of, load_batches, on_device
from prunekit.pipeline.progress import Progress

# Called with an image's id and its row of the batch as the network saw it.
ImageSeen = Callable[[int, Batch, int, Tensor], None]


class EvaluationChoices(Protocol):
    """The fields of a configuration that evaluation reads; see `RunConfig`."""

    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def score_threshold(self) -> float: ...  # noqa: D102
    @property
    def iou_threshold(self) -> float: ...  # noqa: D102
    @property
    def max_detections(self) -> int: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def workers(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Spread:
    """The least, mean and greatest of some values."""

    smallest: float
    mean: float
    largest: float


@dataclass(frozen=True)
class Perturbation:
    """How far the attacked images are from the clean ones, for pixels in [0, 1].

    Attributes:
        linf: over images, the largest change of an image's pixels.
        l2: over images, the Euclidean length of an image's whole change.
        lowest: the lowest value of any attacked pixel.
        highest: the highest.
    """

    linf: Spread
    l2: Spread
    lowest: float
    highest: float


@dataclass(frozen=True)
class Evaluation:
    """What a model found in a data set, and how good that is.

    Attributes:
        detections: by image id; boxes xyxy in pixels of the original images.
        average_precision: of all of them.
        average_precision_confident: of those with a score of at least 0.5.
        false_positives: among those with a score of at least 0.5.
        perturbation: what an attack did to the images; None for a clean evaluation.
    """

    detections: dict[int, Detections]
    average_precision: AveragePrecision
    average_precision_confident: AveragePrecision
    false_positives: FalsePositives
    perturbation: Perturbation | None


def evaluate(
    model: Detector,
    dataset: CocoDataset,
    config: EvaluationChoices,
    attack: Attack | None,
    progress: Progress,
    description: str = "evaluating",
    image_seen: ImageSeen | None = None,
    source: Detector | None = None,
) -> Evaluation:
    """Run `model` over `dataset`, each batch attacked first when there is an attack.

    Args:
        model: The detector, in eval mode.
        dataset: Letterboxed images with their objects.
        config: Batch size, workers, thresholds and seed.
        attack: None for a clean evaluation.
        progress: Shown batch by batch.
        description: The bar's label.
        image_seen: Told of every image as the network sees it.
        source: The model whose gradients the attack follows: `model` itself (white box) if not given, another
            detector of the same classes for a transferred attack.
    """
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(config.seed)
    detections: dict[int, Detections] = {}
    movements: list[Tensor] = []
    num_batches = math.ceil(len(dataset) / config.batch_size)
    loaded = load_batches(dataset, config.batch_size, config.workers)
    for batch in progress.track(loaded, description, num_batches):
        batch = on_device(batch, device)
        x = batch.images
        if attack is not None:
            x = perturb(source or model, batch, attack, generator)
            movements.append(_movement(x, batch.images))
        for row, found in enumerate(detect(model, x, config)):
            image_id = batch.image_ids[row]
            boxes = batch.letterboxes[row].to_image(found.boxes)
            detections[image_id] = Detections(boxes.cpu(), found.scores.cpu(), found.classes.cpu())
            if image_seen is not None:
                image_seen(image_id, batch, row, x[row])
    return Evaluation(
        detections,
        evaluate_detections(dataset, detections),
        evaluate_detections(dataset, confident(detections)),
        false_positives(dataset, detections),
        _perturbation(movements) if movements else None,
    )


def perturb(model: Detector, batch: Batch, attack: Attack, generator: torch.Generator) -> Tensor:
    """Return the batch's images, [N, 3, H, W] in [0, 1], attacked through the gradients of `model`."""
    losses = attack_losses(batch.targets, model.anchors, model.strides, model.num_classes)
    return attack(model, batch.images, losses, generator)


@torch.inference_mode()
def detect(model: Detector, x: Tensor, config: EvaluationChoices) -> list[Detections]:
    """Return each image's detections for x, [N, 3, H, W]; boxes xyxy in its pixels."""
    boxes, scores = decode(model(x), model.anchors, model.strides, model.num_classes)
    return nms(boxes, scores, **nms_options(config))


def nms_options(config: EvaluationChoices) -> dict[str, Any]:
    """Return the configuration's choices for `prunekit.detection.nms`."""
    return {
        "score_threshold": config.score_threshold,
        "iou_threshold": config.iou_threshold,
        "max_detections": config.max_detections,
    }


def _movement(x_adv: Tensor, x: Tensor) -> Tensor:
    """Return each image's largest change, length of change, lowest and highest value, [N, 4]."""
    delta, pixels = (x_adv - x).flatten(1), x_adv.flatten(1)
    length = torch.linalg.vector_norm(delta, dim=1)
    return torch.stack([delta.abs().amax(dim=1), length, pixels.amin(dim=1), pixels.amax(dim=1)], dim=1).cpu()


def _perturbation(movements: list[Tensor]) -> Perturbation:
    linf, l2, lowest, highest = torch.cat(movements).double().unbind(dim=1)
    return Perturbation(_spread(linf), _spread(l2), float(lowest.min()), float(highest.max()))


def _spread(values: Tensor) -> Spread:
    return Spread(float(values.min()), float(values.mean()), float(values.max()))
