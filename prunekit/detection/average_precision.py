"""COCO's average precision, computed by pycocotools and returned unrounded."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from prunekit.detection.boxes import Detections
from prunekit.detection.coco import CocoDataset
from prunekit.detection.detection_files import coco_results
from prunekit.errors import InputError


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's figures in [0, 1]; nan where there is no ground truth to measure on.

    Attributes:
        ap: mean over classes and over IoU 0.50, 0.55 … 0.95.
        ap50: at IoU 0.50.
        ap75: at IoU 0.75.
        ap_small: of objects under 32² pixels of the original image.
        ap_medium: of objects from 32² to 96² pixels.
        ap_large: of objects over 96² pixels.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float


def evaluate_detections(dataset: CocoDataset, detections: Mapping[int, Detections]) -> AveragePrecision:
    """Compare detections with a data set's ground truth.

    Args:
        dataset: the images and their objects; crowds count as pycocotools counts them.
        detections: per image id, in pixels of the original image; images left out have none.
    """
    unknown = detections.keys() - {record.id for record in dataset.images}
    if unknown:
        raise InputError(f"Expected detections of the data set's images, got image id {min(unknown)}")
    evaluation = COCOeval(_ground_truth(dataset), _found(dataset, detections), iouType="bbox")
    with redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # pycocotools says -1 where no object could be found.
    return AveragePrecision(*(float(value) if value >= 0 else float("nan") for value in evaluation.stats[:6]))


def _ground_truth(dataset: CocoDataset) -> Any:
    entries = [
        annotation.entry(number, annotation.label)
        for number, record in enumerate(dataset.images)
        for annotation in record.annotations
    ]
    return _index(dataset, entries)


def _found(dataset: CocoDataset, detections: Mapping[int, Detections]) -> Any:
    numbers = {record.id: number for number, record in enumerate(dataset.images)}
    labels = {category.id: label for label, category in enumerate(dataset.categories)}
    entries = coco_results(detections, dataset.categories)
    for entry in entries:
        _, _, width, height = entry["bbox"]
        entry.update(area=width * height, iscrowd=0)
        entry.update(image_id=numbers[entry["image_id"]], category_id=labels[entry["category_id"]])
    return _index(dataset, entries)


def _index(dataset: CocoDataset, entries: list[dict[str, Any]]) -> Any:
    """Build pycocotools' index; not its loadRes, which cannot take an empty list.

    Images are called by their place and categories by their label: numpy would round ids above 2^53.
    """
    coco = COCO()
    # Ids start at 1: pycocotools takes a match with id 0 for no match.
    numbered = [{"id": number, **entry} for number, entry in enumerate(entries, start=1)]
    images = [{"id": i, "width": r.width, "height": r.height} for i, r in enumerate(dataset.images)]
    categories = [{"id": label, "name": c.name} for label, c in enumerate(dataset.categories)]
    coco.dataset = {"images": images, "annotations": numbered, "categories": categories}
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
