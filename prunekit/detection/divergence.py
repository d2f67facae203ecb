"""How far a detector's answers for attacked images are from those for the clean ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from prunekit.detection.boxes import MAX_LOG_SIZE, Heads
from prunekit.detection.loss import BOX_WEIGHT, CLASSIFICATION_WEIGHT, OBJECTNESS_WEIGHT


def detection_divergence(attacked: Sequence[Tensor], clean: Sequence[Tensor], heads: Heads) -> Tensor:
    """Return how far a detector's answers for attacked images are from those for the clean ones, [N].

    It is built like the detection loss, with the clean answer in the place of the ground truth. Per head, with
    p = σ(clean objectness) of each anchor in each cell,

        mean KL(objectness) + 0.5 · Σ p · mean KL(classes) / max(Σ p, 1) + 0.05 · Σ p · ‖Δ box‖² / max(Σ p, 1)

    and the heads' values add up. KL is that of Bernoulli variables, clean against attacked, the boxes are
    (σ(t_x), σ(t_y), t_w, t_h): offsets in cells and logarithms of sizes. The weight p, held constant for gradients,
    leaves out classes and boxes where nothing is: no training ever gave those numbers, which are the most, a meaning.

    Args:
        attacked: Raw logits per head, [N, A·(5+C), H, W].
        clean: Likewise.
        heads: What they mean.
    """
    total = attacked[0].new_zeros(len(attacked[0]))
    for (ours, _, _), (theirs, _, _) in zip(heads.cells(attacked), heads.cells(clean), strict=True):
        weight = theirs[..., 4].detach().sigmoid()  # [N, A, H, W]
        weight = weight / weight.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
        objectness = bernoulli_divergence(ours[..., 4], theirs[..., 4]).mean(dim=(1, 2, 3))
        classes = (weight * bernoulli_divergence(ours[..., 5:], theirs[..., 5:]).mean(dim=-1)).sum(dim=(1, 2, 3))
        boxes = (weight * (_boxes(ours) - _boxes(theirs)).square().sum(dim=-1)).sum(dim=(1, 2, 3))
        total = total + OBJECTNESS_WEIGHT * objectness + CLASSIFICATION_WEIGHT * classes + BOX_WEIGHT * boxes
    return total


def bernoulli_divergence(attacked: Tensor, clean: Tensor) -> Tensor:
    """Return KL(σ(clean) ‖ σ(attacked)) of logits, elementwise: cross-entropy less entropy."""
    wanted = clean.sigmoid()
    crossed = binary_cross_entropy_with_logits(attacked, wanted, reduction="none")
    return crossed - binary_cross_entropy_with_logits(clean, wanted, reduction="none")


def _boxes(cells: Tensor) -> Tensor:
    """Return (σ(t_x), σ(t_y), t_w, t_h) of cells [..., 5+C], clamped as in decoding."""
    return torch.cat([cells[..., :2].sigmoid(), cells[..., 2:4].clamp(-MAX_LOG_SIZE, MAX_LOG_SIZE)], dim=-1)
