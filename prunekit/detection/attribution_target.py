"""What DeepLIFT explains of a detector: how sure it is of the objects that are there."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prunekit.detection.boxes import split_anchors
from prunekit.detection.loss import match
from prunekit.detection.target import Target


def matched_logits(
    outputs: Sequence[Tensor],
    targets: Sequence[Target],
    anchors: Sequence[Sequence[tuple[float, float]]],
    strides: Sequence[int],
    num_classes: int,
) -> Tensor:
    """Sum the logits of objectness and of the true class over all pairs of object and anchor that match.

    The pairs are those of `detection_loss`. Logits, because a sigmoid would hide what the surest detections rest on.

    Args:
        outputs: per head [N, A·(5+num_classes), H, W].
        targets: per image the objects, boxes xyxy in input pixels.
        anchors: per head, A pairs of width and height in input pixels.
        strides: per head, input pixels per cell.
        num_classes: number of classes.

    Returns:
        One sum per image [N]; 0 for images without objects.
    """
    total = outputs[0].new_zeros(len(targets))
    for logits, head_anchors, stride in zip(outputs, anchors, strides, strict=True):
        sizes = logits.new_tensor(head_anchors)  # [A, 2]
        cells = split_anchors(logits, len(sizes), num_classes)  # [N, A, H, W, 5+C]
        matches = match(targets, sizes, stride, rows=cells.shape[2], columns=cells.shape[3])
        matched = cells[matches.places]  # [P, 5+C]
        true_class = matched[:, 5:].gather(1, matches.labels[:, None])[:, 0]  # [P]
        total = total.index_add(0, matches.places[0], matched[:, 4] + true_class)
    return total
