"""What DeepLIFT explains of a detector: how sure it is of the objects that are there."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prunekit.detection.boxes import Heads
from prunekit.detection.loss import match
from prunekit.detection.target import Target


def matched_logits(outputs: Sequence[Tensor], targets: Sequence[Target], heads: Heads) -> Tensor:
    """Sum the logits of objectness and of the true class over all pairs of object and anchor that match.

    The pairs are those of `detection_loss`, whose arguments these are. Logits, because a sigmoid would hide what the
    surest detections rest on.

    Returns:
        One sum per image [N]; 0 for images without objects.
    """
    total = outputs[0].new_zeros(len(targets))
    for cells, sizes, stride in heads.cells(outputs):
        matches = match(targets, sizes, stride, *cells.shape[2:4])
        matched = cells[matches.places]  # [P, 5+C]
        true_class = matched[:, 5:].gather(1, matches.labels[:, None])[:, 0]  # [P]
        total = total.index_add(0, matches.places[0], matched[:, 4] + true_class)
    return total
