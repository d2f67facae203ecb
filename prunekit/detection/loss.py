"""YOLOv3's training loss, exact per image so that attacks and batches of any size see the same values.

Per head and image, with means over the matches of that image at that head (boxes, classes) or over all its
anchors and cells (objectness):

    loss = 0.05 · mean(1 - CIoU) + mean BCE(objectness, max(CIoU, 0)) + 0.5 · mean BCE(classes, one-hot)

and the heads' losses add up. An object matches, at each head, every anchor whose width and height are both
within a factor of four of its own, in the cell that holds its center: the rule of the common PyTorch trainers
rather than darknet's one best anchor. CIoU is Zheng et al.'s complete IoU (2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from prunekit.detection.boxes import Heads, boxes_from_logits, intersection_and_union
from prunekit.detection.target import Target

BOX_WEIGHT = 0.05
OBJECTNESS_WEIGHT = 1.0
CLASSIFICATION_WEIGHT = 0.5
MAX_ANCHOR_RATIO = 4.0


@dataclass(frozen=True)
class DetectionLoss:
    """The loss of each image: `total` [N] and its weighted parts [N], which add up to it."""

    total: Tensor
    box: Tensor
    objectness: Tensor
    classification: Tensor


@dataclass(frozen=True)
class Matches:
    """P pairs of an object and an anchor at one head.

    Attributes:
        places: image, anchor, row and column of each, int64 [P] each.
        boxes: the objects' boxes [P, 4] xyxy in input pixels.
        labels: the objects' labels [P].
    """

    places: tuple[Tensor, Tensor, Tensor, Tensor]
    boxes: Tensor
    labels: Tensor


def detection_loss(outputs: Sequence[Tensor], targets: Sequence[Target], heads: Heads) -> DetectionLoss:
    """Measure how far raw logits are from the objects in the images.

    Args:
        outputs: per head [N, A·(5+C), H, W].
        targets: per image the objects, boxes xyxy in input pixels; an image without any counts as background.
        heads: what the outputs mean.
    """
    parts = outputs[0].new_zeros(3, len(targets))  # box, objectness, classification
    for cells, sizes, stride in heads.cells(outputs):
        parts = parts + _head_loss(cells, match(targets, sizes, stride, *cells.shape[2:4]), sizes, stride)
    box, objectness, classification = parts.unbind()
    return DetectionLoss(box + objectness + classification, box, objectness, classification)


def match(targets: Sequence[Target], sizes: Tensor, stride: int, rows: int, columns: int) -> Matches:
    """Pair every object with the anchors, sizes [A, 2] in pixels, that resemble it, in its center's cell."""
    counts = torch.tensor([len(target.boxes) for target in targets])
    image = torch.arange(len(targets)).repeat_interleave(counts).to(sizes.device)  # [T]
    boxes = torch.cat([target.boxes for target in targets]).to(sizes)  # [T, 4]
    labels = torch.cat([target.labels for target in targets]).to(sizes.device)  # [T]
    ratio = (boxes[:, None, 2:] - boxes[:, None, :2]) / sizes  # [T, A, 2]
    is_similar = torch.maximum(ratio, 1 / ratio).amax(dim=-1) < MAX_ANCHOR_RATIO
    chosen, anchor = is_similar.nonzero(as_tuple=True)  # [P]
    cell = ((boxes[chosen, :2] + boxes[chosen, 2:]) / 2 / stride).long()
    row, column = cell[:, 1].clamp(0, rows - 1), cell[:, 0].clamp(0, columns - 1)
    return Matches((image[chosen], anchor, row, column), boxes[chosen], labels[chosen])


def _head_loss(cells: Tensor, matches: Matches, sizes: Tensor, stride: int) -> Tensor:
    """Return one head's weighted box, objectness and classification losses, [3, N]."""
    image, anchor, row, column = matches.places
    matched = cells[matches.places]  # [P, 5+C]
    predicted = boxes_from_logits(matched[:, :4], column, row, sizes[anchor], stride)
    similarity = complete_iou(predicted, matches.boxes)  # [P]
    classes = one_hot(matches.labels, cells.shape[-1] - 5).to(cells)  # [P, C]
    class_loss = binary_cross_entropy_with_logits(matched[:, 5:], classes, reduction="none").mean(dim=1)

    wanted = cells.new_zeros(cells.shape[:4])  # [N, A, H, W]
    flat = (((image * wanted.shape[1] + anchor) * wanted.shape[2]) + row) * wanted.shape[3] + column
    # Two objects may share a place: the better fit sets its objectness, whatever the order; none goes below 0.
    wanted = wanted.flatten().scatter_reduce(0, flat, similarity.detach(), "amax").view_as(wanted)
    objectness_loss = binary_cross_entropy_with_logits(cells[..., 4], wanted, reduction="none")
    return torch.stack(
        [
            BOX_WEIGHT * mean_per_image(1 - similarity, image, len(cells)),
            OBJECTNESS_WEIGHT * objectness_loss.flatten(1).mean(dim=1),
            CLASSIFICATION_WEIGHT * mean_per_image(class_loss, image, len(cells)),
        ]
    )


def complete_iou(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Return IoU less penalties for distant centers and other aspect ratios, of boxes xyxy [P, 4], as [P].

    CIoU = IoU - ρ²/c² - α·v with ρ the distance of the centers, c the diagonal of the box around both,
    v = 4/π²·(atan(w/h) - atan(w'/h'))² and α = v/(1 - IoU + v), held constant for gradients.
    """
    intersection, union = intersection_and_union(predicted, wanted)
    iou = intersection / union
    enclosing = torch.maximum(predicted[:, 2:], wanted[:, 2:]) - torch.minimum(predicted[:, :2], wanted[:, :2])
    offset = (predicted[:, :2] + predicted[:, 2:] - wanted[:, :2] - wanted[:, 2:]) / 2
    distance = offset.square().sum(dim=1) / enclosing.square().sum(dim=1)
    v = 4 / math.pi**2 * (_aspect_angle(predicted) - _aspect_angle(wanted)).square()
    with torch.no_grad():
        alpha = v / (1 - iou + v).clamp(min=torch.finfo(v.dtype).tiny)
    return iou - distance - alpha * v


def _aspect_angle(boxes: Tensor) -> Tensor:
    size = boxes[:, 2:] - boxes[:, :2]
    return torch.atan2(size[:, 0], size[:, 1])


def mean_per_image(values: Tensor, image: Tensor, num_images: int) -> Tensor:
    """Average values [P] over those of each image, whose indices are image [P]; 0 for images without any."""
    sums = values.new_zeros(num_images).index_add(0, image, values)
    return sums / torch.bincount(image, minlength=num_images).clamp(min=1)
