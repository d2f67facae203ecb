"""What makes detectors and classifiers the same to a training objective: a loss and a distance, image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div, log_softmax

from prunekit.attacks import cross_entropy_per_image
from prunekit.detection import Detector, detection_loss
from prunekit.detection.boxes import MAX_LOG_SIZE, split_anchors
from prunekit.detection.loss import BOX_WEIGHT, CLASSIFICATION_WEIGHT, OBJECTNESS_WEIGHT


@dataclass(frozen=True)
class Task:
    """What a model is trained to do; N is the number of images.

    Attributes:
        loss_per_image: Maps outputs and targets to losses [N].
        divergence_per_image: Maps the outputs for attacked and for clean images to [N], 0 where they agree and positive
            elsewhere: how far the attack took the answer, whatever the right one is. TRADES needs it.
    """

    loss_per_image: Callable[[Any, Any], Tensor]
    divergence_per_image: Callable[[Any, Any], Tensor]


def classifier_task() -> Task:
    """Outputs are logits [N, C], targets labels [N]: cross-entropy, and KL(softmax(clean) ‖ softmax(attacked))."""
    return Task(lambda logits, labels: cross_entropy_per_image(labels)(logits), softmax_divergence)


def detector_task(model: Detector) -> Task:
    """Outputs are raw logits per head, targets a `Target` an image: `detection_loss` and `detection_divergence`."""
    anchors, strides, num_classes = model.anchors, model.strides, model.num_classes

    def loss_per_image(outputs: Sequence[Tensor], targets: Any) -> Tensor:
        return detection_loss(outputs, targets, anchors, strides, num_classes).total

    def divergence_per_image(attacked: Sequence[Tensor], clean: Sequence[Tensor]) -> Tensor:
        return detection_divergence(attacked, clean, [len(sizes) for sizes in anchors], num_classes)

    return Task(loss_per_image, divergence_per_image)


def softmax_divergence(attacked: Tensor, clean: Tensor) -> Tensor:
    """Return KL(softmax(clean) ‖ softmax(attacked)) of logits [N, C], as [N]."""
    divergence = kl_div(log_softmax(attacked, dim=1), log_softmax(clean, dim=1), reduction="none", log_target=True)
    return divergence.sum(dim=1)


def detection_divergence(
    attacked: Sequence[Tensor], clean: Sequence[Tensor], num_anchors: Sequence[int], num_classes: int
) -> Tensor:
    """Return how far a detector's answers for attacked images are from those for the clean ones, [N].

    It is built like the detection loss, with the clean answer in the place of the ground truth. Per head, with
    p = σ(clean objectness) of each anchor in each cell,

        mean KL(objectness) + 0.5 · Σ p · mean KL(classes) / max(Σ p, 1) + 0.05 · Σ p · ‖Δ box‖² / max(Σ p, 1)

    and the heads' values add up. KL is that of Bernoulli variables, clean against attacked, the boxes are
    (σ(t_x), σ(t_y), t_w, t_h): offsets in cells and logarithms of sizes. The weight p, held constant for gradients,
    leaves out classes and boxes where nothing is: no training ever gave those numbers, which are the most, a meaning.

    Args:
        attacked: Raw logits per head, [N, A·(5+num_classes), H, W].
        clean: Likewise.
        num_anchors: A of each head.
        num_classes: Number of classes.
    """
    total = attacked[0].new_zeros(len(attacked[0]))
    for head_attacked, head_clean, count in zip(attacked, clean, num_anchors, strict=True):
        ours, theirs = (split_anchors(logits, count, num_classes) for logits in (head_attacked, head_clean))
        weight = theirs[..., 4].detach().sigmoid()  # [N, A, H, W]
        weight = weight / weight.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
        objectness = _bernoulli_divergence(ours[..., 4], theirs[..., 4]).mean(dim=(1, 2, 3))
        classes = (weight * _bernoulli_divergence(ours[..., 5:], theirs[..., 5:]).mean(dim=-1)).sum(dim=(1, 2, 3))
        boxes = (weight * (_boxes(ours) - _boxes(theirs)).square().sum(dim=-1)).sum(dim=(1, 2, 3))
        total = total + OBJECTNESS_WEIGHT * objectness + CLASSIFICATION_WEIGHT * classes + BOX_WEIGHT * boxes
    return total


def _bernoulli_divergence(attacked: Tensor, clean: Tensor) -> Tensor:
    """Return KL(σ(clean) ‖ σ(attacked)) of logits, elementwise: cross-entropy less entropy."""
    wanted = clean.sigmoid()
    crossed = binary_cross_entropy_with_logits(attacked, wanted, reduction="none")
    return crossed - binary_cross_entropy_with_logits(clean, wanted, reduction="none")


def _boxes(cells: Tensor) -> Tensor:
    """Return (σ(t_x), σ(t_y), t_w, t_h) of cells [..., 5+C], clamped as in decoding."""
    return torch.cat([cells[..., :2].sigmoid(), cells[..., 2:4].clamp(-MAX_LOG_SIZE, MAX_LOG_SIZE)], dim=-1)
