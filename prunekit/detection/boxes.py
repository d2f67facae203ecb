"""From head logits to detections: decoding, intersection over union, class-wise suppression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.detection.yolov3 import Anchors, Detector
from prunekit.errors import InputError

# exp(8) is about 3000 anchors wide, far beyond any image, and exp(-8) far below a pixel: the clamp only keeps
# wild logits and the gradients of their boxes finite.
MAX_LOG_SIZE = 8.0
# Greedy suppression works through the candidates in chunks. On one core, 256 took 1.1 ms per image of COCO128 with
# yolov3-tiny, the least among 128 … 2048.
NMS_CHUNK = 256
# Pairs of box and class that enter suppression where nobody says how many: far more than any photo has.
MAX_CANDIDATES = 30_000


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first: boxes [K, 4] xyxy in pixels, scores [K], classes [K] int64."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Heads:
    """What a detector's outputs mean.

    Attributes:
        anchors: per head, A pairs of width and height in input pixels.
        strides: per head, input pixels per cell.
        num_classes: number of classes.
    """

    anchors: Sequence[Anchors]
    strides: Sequence[int]
    num_classes: int

    @classmethod
    def of(cls, model: nn.Module) -> Heads:
        """Return a detector's."""
        if not isinstance(model, Detector):
            raise InputError(
                f"Expected a prunekit.detection.Detector for the task detection, got {type(model).__name__}."
            )
        return cls(model.anchors, model.strides, model.num_classes)

    def cells(self, outputs: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield each head's logits as `split_anchors` views them, its anchors [A, 2] and its stride."""
        for logits, anchors, stride in zip(outputs, self.anchors, self.strides, strict=True):
            yield split_anchors(logits, len(anchors), self.num_classes), logits.new_tensor(anchors), stride


def split_anchors(logits: Tensor, num_anchors: int, num_classes: int) -> Tensor:
    """View a head's logits [N, A·(5+C), H, W] as [N, A, H, W, 5+C]: x, y, w, h, objectness, classes."""
    return logits.view(len(logits), num_anchors, 5 + num_classes, *logits.shape[2:]).movedim(2, -1)


def decode(outputs: Sequence[Tensor], heads: Heads) -> tuple[Tensor, Tensor]:
    """Turn raw logits, per head [N, A·(5+C), H, W], into boxes and scores.

    Returns:
        boxes [N, M, 4], xyxy in pixels of the network's input, and scores [N, M, C],
        objectness times class probability. M counts heads, then anchors, rows and columns.
    """
    boxes, scores = [], []
    for cells, sizes, stride in heads.cells(outputs):
        head_boxes = boxes_from_logits(
            cells[..., :4],
            columns=torch.arange(cells.shape[3], device=cells.device),
            rows=torch.arange(cells.shape[2], device=cells.device)[:, None],
            anchors=sizes[:, None, None, :],  # [A, 1, 1, 2]
            stride=stride,
        )
        boxes.append(head_boxes.flatten(1, 3))
        scores.append((cells[..., 4:5].sigmoid() * cells[..., 5:].sigmoid()).flatten(1, 3))
    return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)


def boxes_from_logits(t: Tensor, columns: Tensor, rows: Tensor, anchors: Tensor, stride: int) -> Tensor:
    """Apply YOLOv3's box equations: center (sigmoid(t_xy) + cell)·stride, size anchor·exp(t_wh).

    Args:
        t: box logits [..., 4].
        columns: the cells' columns, broadcastable to [...].
        rows: the cells' rows, broadcastable to [...].
        anchors: width and height in input pixels, broadcastable to [..., 2].
        stride: input pixels per cell.

    Returns:
        Boxes [..., 4], xyxy in input pixels.
    """
    center_x = (t[..., 0].sigmoid() + columns) * stride
    center_y = (t[..., 1].sigmoid() + rows) * stride
    center = torch.stack([center_x, center_y], dim=-1)
    half_size = anchors * t[..., 2:4].clamp(-MAX_LOG_SIZE, MAX_LOG_SIZE).exp() / 2
    return torch.cat([center - half_size, center + half_size], dim=-1)


def intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the areas shared and covered by boxes a and b, xyxy [..., 4] that broadcast, as [...]."""
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    union = box_area(a) + box_area(b) - intersection
    return intersection, union


def box_area(boxes: Tensor) -> Tensor:
    """Return the areas [...] of boxes xyxy [..., 4]."""
    size = boxes[..., 2:] - boxes[..., :2]
    return size[..., 0] * size[..., 1]


def nms(
    boxes: Tensor,
    scores: Tensor,
    score_threshold: float = 0.001,
    iou_threshold: float = 0.45,
    max_detections: int = 300,
    max_candidates: int = MAX_CANDIDATES,
) -> list[Detections]:
    """Suppress, class by class, every box that overlaps a better one of its class.

    A box takes part once for each class whose score is above the threshold.

    Args:
        boxes: [N, M, 4] xyxy.
        scores: [N, M, C].
        score_threshold: scores at or below it are dropped.
        iou_threshold: an intersection over union above it suppresses.
        max_detections: at most so many are kept per image, the best of all classes.
        max_candidates: at most so many pairs of box and class enter per image, the best ones.

    Returns:
        One `Detections` per image, best first; equal scores keep the order of (box, class).
    """
    detections = []
    for image_boxes, image_scores in zip(boxes, scores, strict=True):
        candidates = _candidates(image_boxes, image_scores, score_threshold, max_candidates)
        detections.append(_suppress(candidates, iou_threshold, max_detections))
    return detections


def _candidates(boxes: Tensor, scores: Tensor, score_threshold: float, max_candidates: int) -> Detections:
    box, label = (scores > score_threshold).nonzero(as_tuple=True)
    score, order = scores[box, label].sort(descending=True, stable=True)
    order = order[:max_candidates]
    return Detections(boxes[box[order]], score[:max_candidates], label[order])


def _suppress(candidates: Detections, iou_threshold: float, max_detections: int) -> Detections:
    """Walk down the candidates in chunks, best first, until enough are kept."""
    kept = candidates.classes.new_empty(0)
    ranks = torch.arange(len(candidates), device=kept.device)
    for start in range(0, len(ranks), NMS_CHUNK):
        if len(kept) >= max_detections:
            break
        chunk = ranks[start : start + NMS_CHUNK]
        is_suppressed = _conflicts(candidates, kept, chunk, iou_threshold).any(dim=0)
        chunk = chunk[~is_suppressed]
        kept = torch.cat([kept, chunk[_greedy(_conflicts(candidates, chunk, chunk, iou_threshold))]])
    kept = kept[:max_detections]
    return Detections(candidates.boxes[kept], candidates.scores[kept], candidates.classes[kept])


def _conflicts(candidates: Detections, better: Tensor, worse: Tensor, iou_threshold: float) -> Tensor:
    """Return whether candidates [I] and [J] share a class and overlap too much, as bool [I, J]."""
    boxes, classes = candidates.boxes, candidates.classes
    intersection, union = intersection_and_union(boxes[better][:, None], boxes[worse][None])
    is_same_class = classes[better][:, None] == classes[worse][None]
    return is_same_class & (intersection > iou_threshold * union)


def _greedy(conflicts: Tensor) -> Tensor:
    """Return which of K ranked candidates greedy suppression keeps, bool [K], from their conflicts [K, K].

    j is kept if no kept i < j conflicts with it. Repeating that rule for all j at once settles at least one
    more of the leading candidates each time, so its fixed point is the greedy answer, usually after three or
    four rounds.
    """
    beats = conflicts.triu(1).float()
    keep = beats.new_ones(len(beats))
    while not torch.equal(keep, settled := (keep @ beats == 0).float()):
        keep = settled
    return keep.bool()
