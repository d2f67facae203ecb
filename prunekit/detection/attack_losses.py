"""What attacks on a detector raise: losses per image that lose, invent, move or rename its objects.

The vanish, fabricate and mislabel targets are those of TOG (Chow et al. 2020, "Adversarial objectness gradient attacks
in real-time object detection systems"): each is the negative loss towards what the attacker would like to be detected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot, softplus

from prunekit.attacks import AttackLosses
from prunekit.detection.boxes import Heads, decode, intersection_and_union
from prunekit.detection.loss import CLASSIFICATION_WEIGHT, DetectionLoss, detection_loss, match, mean_per_image
from prunekit.detection.target import Target

Outputs = Sequence[Tensor]

# What counts as found: the report's score threshold and the usual overlap.
FOUND_SCORE = 0.5
FOUND_IOU = 0.5


@dataclass(frozen=True)
class DetectorTask:
    """The objects in N images, boxes xyxy in input pixels, and what the detector's outputs mean that looks for them."""

    targets: Sequence[Target]
    heads: Heads

    def loss(self, outputs: Outputs) -> DetectionLoss:
        """Return the training loss of raw logits, per head [N, A·(5+C), H, W]."""
        return detection_loss(outputs, self.targets, self.heads)

    def vanish(self, outputs: Outputs) -> Tensor:
        """Return minus the objectness loss towards nothing anywhere, [N]."""
        return -self._objectness_towards(0, outputs)

    def fabricate(self, outputs: Outputs) -> Tensor:
        """Return minus the objectness loss towards an object everywhere, [N]."""
        return -self._objectness_towards(1, outputs)

    def mislabel(self, outputs: Outputs) -> Tensor:
        """Return minus the loss towards the same objects under the likeliest wrong class, [N]."""
        loss = self.loss(outputs)
        wrong = loss.total.new_zeros(len(self.targets))
        for cells, sizes, stride in self.heads.cells(outputs):
            matches = match(self.targets, sizes, stride, *cells.shape[2:4])
            classes = cells[matches.places][:, 5:]  # [P, C]
            is_right = one_hot(matches.labels, self.heads.num_classes).bool()
            likeliest = classes.masked_fill(is_right, -math.inf).argmax(dim=1)
            wanted = one_hot(likeliest, self.heads.num_classes).to(classes)
            class_loss = binary_cross_entropy_with_logits(classes, wanted, reduction="none").mean(dim=1)
            wrong = wrong + mean_per_image(class_loss, matches.places[0], len(cells))
        return -(loss.box + loss.objectness + CLASSIFICATION_WEIGHT * wrong)

    def margin(self, outputs: Outputs) -> Tensor:
        """Say how far each image is from losing all its objects, [N]: above 0 once none is found any more.

        An object is found if a box with an IoU of at least 0.5 has a score of at least 0.5 for its class. Its excess
        is log(score / 0.5) of the best such box. While objects are found, the margin is minus the mean over objects of
        max(excess, 0); afterwards minus the largest excess. An image without objects has lost all of them.
        """
        counts = torch.tensor([len(target.boxes) for target in self.targets])
        boxes, scores = decode(outputs, self.heads)  # [N, M, 4], [N, M, C]
        image = torch.arange(len(counts)).repeat_interleave(counts).to(boxes.device)  # [T]
        wanted = torch.cat([target.boxes for target in self.targets]).to(boxes)  # [T, 4]
        labels = torch.cat([target.labels for target in self.targets]).to(boxes.device)  # [T]
        with torch.no_grad():
            intersection, union = intersection_and_union(boxes[image], wanted[:, None])
            overlaps = intersection >= FOUND_IOU * union  # [T, M]
        best = torch.where(overlaps, scores[image, :, labels], 0.0).amax(dim=1)  # [T]
        return margin_of_best(best, counts)

    def _objectness_towards(self, wanted: int, outputs: Outputs) -> Tensor:
        losses = []
        for cells, _, _ in self.heads.cells(outputs):
            t = cells[..., 4]  # [N, A, H, W]
            losses.append(softplus(-t if wanted else t).flatten(1).mean(dim=1))
        return torch.stack(losses).sum(dim=0)


def margin_of_best(best: Tensor, counts: Tensor) -> Tensor:
    """Return the margins [N] of images from the best score of a box that finds each object.

    Args:
        best: One score for each object, image by image, [T]; 0 where no box covers it.
        counts: How many of the T are each image's, int64 [N].
    """
    image = torch.arange(len(counts)).repeat_interleave(counts).to(best.device)  # [T]
    tiny = torch.finfo(best.dtype).tiny
    excess = (best.clamp(min=tiny) / FOUND_SCORE).log()
    found = mean_per_image(excess.relu(), image, len(counts))  # [N]
    # The smallest score there is stands for an image without objects.
    none = excess.new_full((len(counts),), math.log(tiny))
    largest = none.scatter_reduce(0, image, excess, "amax")
    return torch.where(largest >= 0, -found, -largest)


def attack_losses(targets: Sequence[Target], heads: Heads) -> AttackLosses:
    """Return what attacks raise for images with these objects; the arguments are those of `detection_loss`.

    The worst result for an image is the one with the greatest total training loss. Average precision cannot decide
    that: it is a figure of a whole data set, and one image's misses and inventions count in the order of their scores
    among all others'. The training loss counts both for each image alone, and it is what the detector was made good at.
    """
    task = DetectorTask(targets, heads)
    components: dict[str, Callable[[Outputs], Tensor]] = {
        "total": lambda outputs: task.loss(outputs).total,
        "classification": lambda outputs: task.loss(outputs).classification,
        "localization": lambda outputs: task.loss(outputs).box,
        "objectness": lambda outputs: task.loss(outputs).objectness,
        "vanish": task.vanish,
        "fabricate": task.fabricate,
    }
    if heads.num_classes > 1:  # a single class cannot be mistaken
        components["mislabel"] = task.mislabel
    # Not the total: the overlap that its objectness part aims at is held constant in gradients.
    total = components["total"]
    return AttackLosses(total, task.margin, components, badness=total, smooth=task.vanish)
