"""Detect on a data set, clean or under attack, and score what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunekit.attacks import PgdConfig, pgd
from prunekit.detection import (
    AveragePrecision,
    Batch,
    CocoDataset,
    Detections,
    Detector,
    collate,
    decode,
    detection_loss,
    evaluate_detections,
    nms,
)
from prunekit.pipeline.config import RunConfig
from prunekit.pipeline.progress import Progress

# Called with an image's id and its row of the batch as the network saw it.
ImageSeen = Callable[[int, Batch, int, Tensor], None]


@dataclass(frozen=True)
class Evaluation:
    """Detections by image id, boxes xyxy in pixels of the original images, and their average precision."""

    detections: dict[int, Detections]
    average_precision: AveragePrecision


def evaluate(
    model: Detector,
    dataset: CocoDataset,
    config: RunConfig,
    attack: PgdConfig | None,
    progress: Progress,
    description: str,
    image_seen: ImageSeen,
) -> Evaluation:
    """Run `model` over `dataset`, each batch attacked first when there is an attack.

    Args:
        model: The detector, in eval mode; the attack's gradients are its own (white box).
        dataset: Letterboxed images with their objects.
        config: Batch size, thresholds and seed.
        attack: None for a clean evaluation.
        progress: Shown batch by batch.
        description: The bar's label.
        image_seen: Told of every image as the network sees it.
    """
    generator = torch.Generator().manual_seed(config.seed)
    detections: dict[int, Detections] = {}
    num_batches = math.ceil(len(dataset) / config.batch_size)
    for batch in progress.track(_batches(dataset, config.batch_size), description, num_batches):
        x = batch.images if attack is None else perturb(model, batch, attack, generator)
        for row, found in enumerate(detect(model, x, config)):
            image_id = batch.image_ids[row]
            boxes = batch.letterboxes[row].to_image(found.boxes)
            detections[image_id] = Detections(boxes, found.scores, found.classes)
            image_seen(image_id, batch, row, x[row])
    return Evaluation(detections, evaluate_detections(dataset, detections))


def perturb(model: Detector, batch: Batch, attack: PgdConfig, generator: torch.Generator) -> Tensor:
    """Return the batch's images, [N, 3, H, W] in [0, 1], perturbed to raise each image's detection loss."""

    def loss_per_image(outputs: tuple[Tensor, ...]) -> Tensor:
        loss = detection_loss(outputs, batch.targets, model.anchors, model.strides, model.num_classes)
        return loss.total

    return pgd(model, batch.images, loss_per_image, attack, generator)


@torch.inference_mode()
def detect(model: Detector, x: Tensor, config: RunConfig) -> list[Detections]:
    """Return each image's detections for x, [N, 3, H, W]; boxes xyxy in its pixels."""
    boxes, scores = decode(model(x), model.anchors, model.strides, model.num_classes)
    return nms(boxes, scores, **nms_options(config))


def nms_options(config: RunConfig) -> dict[str, Any]:
    """Return the configuration's choices for `prunekit.detection.nms`."""
    return {
        "score_threshold": config.score_threshold,
        "iou_threshold": config.iou_threshold,
        "max_detections": config.max_detections,
    }


def _batches(dataset: CocoDataset, batch_size: int) -> Iterator[Batch]:
    for start in range(0, len(dataset), batch_size):
        stop = min(start + batch_size, len(dataset))
        yield collate([dataset[index] for index in range(start, stop)])
