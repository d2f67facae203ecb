"""What average precision does not say: false alarms at a working threshold, and what an attack takes away.

A detection is *confident* from a score of 0.5, and finds an object of its class from an IoU of 0.5. As in COCO's
evaluation, detections choose in the order of their scores, each the best object that is still free; a second box on
the same object is false. Crowds are neither objects to find nor reasons for a false positive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunekit.detection import CocoDataset, Detections, ImageRecord
from prunekit.detection.attack_losses import FOUND_IOU, FOUND_SCORE
from prunekit.detection.boxes import box_area, intersection_and_union
from prunekit.detection.target import Target


@dataclass(frozen=True)
class FalsePositives:
    """Confident detections that match no object.

    Attributes:
        per_image: their number, relative to the images.
        share: their number, relative to all confident detections; nan where there are none.
        detections: all confident detections.
    """

    per_image: float
    share: float
    detections: int


@dataclass(frozen=True)
class AttackSuccess:
    """What an attack did to the objects that were found on clean images.

    Attributes:
        rate: share of them that are not found any more: `lost` + `mislabeled`; nan where none was found.
        lost: share that no confident detection covers any more.
        mislabeled: share that only confident detections of other classes cover.
        objects: the number of objects found clean.
    """

    rate: float
    lost: float
    mislabeled: float
    objects: int


@dataclass(frozen=True)
class Matching:
    """How one image's confident detections and its objects pair up.

    Attributes:
        is_found: of each object, bool [K].
        is_covered: whether any confident detection, of whatever class, overlaps the object; bool [K].
        is_false: of each confident detection, bool [D].
    """

    is_found: Tensor
    is_covered: Tensor
    is_false: Tensor


def confident(detections: Mapping[int, Detections]) -> dict[int, Detections]:
    """Keep the detections with a score of at least 0.5."""
    kept = {}
    for image_id, found in detections.items():
        chosen = found.scores >= FOUND_SCORE
        kept[image_id] = Detections(found.boxes[chosen], found.scores[chosen], found.classes[chosen])
    return kept


def false_positives(dataset: CocoDataset, detections: Mapping[int, Detections]) -> FalsePositives:
    """Count confident detections that match nothing; boxes xyxy in pixels of the original images."""
    is_false = torch.cat([matching.is_false for matching in match_all(dataset, detections)])
    number = int(is_false.sum())
    share = number / len(is_false) if len(is_false) else float("nan")
    return FalsePositives(number / len(dataset), share, len(is_false))


def attack_success(
    dataset: CocoDataset, clean: Mapping[int, Detections], attacked: Mapping[int, Detections]
) -> AttackSuccess:
    """Compare one model's detections on clean and on attacked images, of the same data set."""
    before, after = match_all(dataset, clean), match_all(dataset, attacked)
    was_found = torch.cat([matching.is_found for matching in before])
    is_found = torch.cat([matching.is_found for matching in after])[was_found]
    is_covered = torch.cat([matching.is_covered for matching in after])[was_found]
    objects = len(is_found)
    if objects == 0:
        return AttackSuccess(float("nan"), float("nan"), float("nan"), 0)
    lost, mislabeled = int((~is_found & ~is_covered).sum()), int((~is_found & is_covered).sum())
    return AttackSuccess((lost + mislabeled) / objects, lost / objects, mislabeled / objects, objects)


def match_all(dataset: CocoDataset, detections: Mapping[int, Detections]) -> list[Matching]:
    """Match every image's confident detections; images left out have none."""
    kept = confident(detections)
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    return [match_objects(record, kept.get(record.id, nothing)) for record in dataset.images]


def match_objects(record: ImageRecord, found: Detections) -> Matching:
    """Pair one image's objects with detections, best first; boxes xyxy in pixels of the original image."""
    matching = match_boxes(Target(record.boxes, record.labels), found)
    return replace(matching, is_false=matching.is_false & ~_is_crowd(record, found))


def match_boxes(wanted: Target, found: Detections) -> Matching:
    """Pair boxes that are to be found with detections, best first; all xyxy in the same pixels."""
    boxes, labels = wanted.boxes.to(found.boxes), wanted.labels
    intersection, union = intersection_and_union(found.boxes[:, None], boxes[None])  # [D, K]
    iou = intersection / union.clamp(min=torch.finfo(union.dtype).tiny)
    is_free, is_false = torch.ones(len(boxes), dtype=torch.bool), torch.ones(len(found), dtype=torch.bool)
    for index, label in enumerate(found.classes):
        candidates = torch.where(is_free & (labels == label), iou[index], -1.0)
        if len(candidates) and candidates.max() >= FOUND_IOU:
            is_free[candidates.argmax()] = False
            is_false[index] = False
    return Matching(~is_free, (iou >= FOUND_IOU).any(dim=0), is_false)


def _is_crowd(record: ImageRecord, found: Detections) -> Tensor:
    """Return which detections lie, by at least half of their area, in a crowd of their class; bool [D]."""
    crowds = [annotation for annotation in record.annotations if annotation.is_crowd]
    boxes = found.boxes.new_tensor([crowd.box for crowd in crowds]).reshape(-1, 4)
    labels = torch.tensor([crowd.label for crowd in crowds], dtype=torch.int64)
    intersection, _ = intersection_and_union(found.boxes[:, None], boxes[None])  # [D, crowds]
    is_inside = intersection >= FOUND_IOU * box_area(found.boxes)[:, None]
    return (is_inside & (found.classes[:, None] == labels)).any(dim=1)
