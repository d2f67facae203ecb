"""Slow, plain loops in float64 that say what detection should compute."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

Box = tuple[float, float, float, float]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def decode_loop(
    outputs: Sequence[Tensor],
    anchors: Sequence[Sequence[tuple[float, float]]],
    strides: Sequence[int],
    num_classes: int,
) -> list[list[tuple[Box, list[float]]]]:
    """Per image, every box (xyxy, input pixels) with its class scores: heads, anchors, rows, columns."""
    images: list[list[tuple[Box, list[float]]]] = [[] for _ in range(len(outputs[0]))]
    for logits, sizes, stride in zip(outputs, anchors, strides, strict=True):
        for n, found in enumerate(images):
            for a, (anchor_width, anchor_height) in enumerate(sizes):
                for row in range(logits.shape[2]):
                    for column in range(logits.shape[3]):
                        first = a * (5 + num_classes)
                        t = [float(v) for v in logits[n, first : first + 5 + num_classes, row, column]]
                        x, y = (sigmoid(t[0]) + column) * stride, (sigmoid(t[1]) + row) * stride
                        width, height = anchor_width * math.exp(t[2]), anchor_height * math.exp(t[3])
                        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                        found.append((box, [sigmoid(t[4]) * sigmoid(v) for v in t[5:]]))
    return images


def iou_scalar(a: Box, b: Box) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = area(a) + area(b) - width * height
    return width * height / union


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def complete_iou_scalar(a: Box, b: Box) -> float:
    """CIoU as Zheng et al. (2020) write it."""
    iou = iou_scalar(a, b)
    rho2 = ((a[0] + a[2] - b[0] - b[2]) ** 2 + (a[1] + a[3] - b[1] - b[3]) ** 2) / 4
    c2 = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    angle_a = math.atan((a[2] - a[0]) / (a[3] - a[1]))
    angle_b = math.atan((b[2] - b[0]) / (b[3] - b[1]))
    v = 4 / math.pi**2 * (angle_a - angle_b) ** 2
    alpha = v / (1 - iou + v) if v > 0 else 0.0
    return iou - rho2 / c2 - alpha * v


def nms_loop(
    boxes: Sequence[Box],
    scores: Sequence[Sequence[float]],
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> list[tuple[int, int]]:
    """Greedy suppression class by class; the kept pairs of box and class, best first."""
    kept: list[tuple[float, int, int]] = []
    for label in range(len(scores[0])):
        candidates = [index for index in range(len(boxes)) if scores[index][label] > score_threshold]
        candidates.sort(key=lambda index: -scores[index][label])
        chosen: list[int] = []
        for index in candidates:
            if all(iou_scalar(boxes[index], boxes[other]) <= iou_threshold for other in chosen):
                chosen.append(index)
        kept.extend((-scores[index][label], index, label) for index in chosen)
    return [(index, label) for _, index, label in sorted(kept)[:max_detections]]


def bce(logit: float, wanted: float) -> float:
    probability = sigmoid(logit)
    return -wanted * math.log(probability) - (1 - wanted) * math.log(1 - probability)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def detection_loss_loop(
    outputs: Sequence[Tensor],
    boxes: Sequence[Box],
    labels: Sequence[int],
    anchors: Sequence[Sequence[tuple[float, float]]],
    strides: Sequence[int],
    num_classes: int,
) -> tuple[float, float, float]:
    """The box, objectness and classification losses of one image, outputs [1, ...], without their weights."""
    decoded = decode_loop(outputs, anchors, strides, num_classes)[0]
    totals = [0.0, 0.0, 0.0]
    first = 0  # the head's first box among the decoded
    for logits, sizes, stride in zip(outputs, anchors, strides, strict=True):
        rows, columns = logits.shape[2:]
        cells = logits[0].view(len(sizes), 5 + num_classes, rows, columns)
        wanted: dict[tuple[int, int, int], float] = {}
        box_losses, class_losses = [], []
        for box, label in zip(boxes, labels, strict=True):
            for a, (anchor_width, anchor_height) in enumerate(sizes):
                width_ratio = (box[2] - box[0]) / anchor_width
                height_ratio = (box[3] - box[1]) / anchor_height
                if max(width_ratio, 1 / width_ratio, height_ratio, 1 / height_ratio) >= 4:
                    continue
                column, row = int((box[0] + box[2]) / 2 / stride), int((box[1] + box[3]) / 2 / stride)
                predicted = decoded[first + (a * rows + row) * columns + column][0]
                similarity = complete_iou_scalar(predicted, box)
                place = (a, row, column)
                wanted[place] = max(wanted.get(place, 0.0), similarity)
                box_losses.append(1 - similarity)
                t = cells[a, 5:, row, column].tolist()
                class_losses.append(mean([bce(v, float(c == label)) for c, v in enumerate(t)]))
        objectness = [
            bce(float(cells[a, 4, row, column]), wanted.get((a, row, column), 0.0))
            for a in range(len(sizes))
            for row in range(rows)
            for column in range(columns)
        ]
        parts = (mean(box_losses), mean(objectness), mean(class_losses))
        totals = [total + part for total, part in zip(totals, parts, strict=True)]
        first += len(sizes) * rows * columns
    return totals[0], totals[1], totals[2]
