"""Targeted FAB, the fast adaptive boundary attack (Croce and Hein 2020, "Minimally distorted adversarial examples …").

It looks for the nearest misclassified image in L∞ rather than for the worst in a ball. Near x_adv, the boundary between
the label and a target class is taken for the plane where the linear models of their logits are equal. Both x_adv and
the clean image are moved onto it within the box, the two are mixed so that the result stays near the clean image, and
what is misclassified is drawn back towards it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from prunekit.attacks.classification import targeted_margin_per_image
from prunekit.attacks.gradient import loss_at, slope_at
from prunekit.attacks.steps import per_image

# The published standard: the largest share of the clean image in the mix, how far to overshoot the plane, and how far
# from the clean image a success is drawn back.
ALPHA_MAX, OVERSHOOT, DRAWN_BACK = 0.1, 1.05, 0.9


def fab(model: nn.Module, x: Tensor, labels: Tensor, targets: Tensor, eps: float, steps: int) -> Tensor:
    """Search for misclassified images near x; batch normalization must be in eval mode. Nothing is random.

    Args:
        model: A classifier: maps images to logits [N, C].
        x: Clean images [N, ...] in [0, 1] that are classified correctly.
        labels: Their classes, int64 [N].
        targets: The classes towards which to go, int64 [N]; to land in another wrong one counts as well.
        eps: The search ends when every image has been misclassified this near.
        steps: Gradient steps.

    Returns:
        Per image the nearest misclassified one, if it is within eps in L∞, else the clean one, [N, ...].
    """
    margin_per_image = targeted_margin_per_image(labels, targets)
    x_adv, nearest, distance = x, x, x.new_full((len(x),), math.inf)
    for _ in range(steps):
        _, margin, grad = slope_at(model, x_adv, margin_per_image)
        x_adv = _towards_the_plane(x_adv, x, margin, grad)
        is_wrong = loss_at(model, x_adv, lambda logits: logits.argmax(dim=1)) != labels
        moved = _length(x_adv - x)
        is_nearer = is_wrong & (moved < distance)
        nearest = torch.where(per_image(is_nearer, x), x_adv, nearest)
        distance = torch.where(is_nearer, moved, distance)
        if (distance <= eps).all():
            break
        x_adv = torch.where(per_image(is_wrong, x), x + DRAWN_BACK * (x_adv - x), x_adv)
    return torch.where(per_image(distance <= eps, x), nearest, x)


def _towards_the_plane(x_adv: Tensor, x: Tensor, margin: Tensor, grad: Tensor) -> Tensor:
    """Mix the projections of x_adv and x onto {x': margin + grad · (x' - x_adv) = 0}; all [N, ...], margin [N]."""
    missing = -margin + ((x_adv - x) * grad).flatten(1).sum(dim=1)
    own, clean = project_onto_plane(x_adv, grad, -margin), project_onto_plane(x, grad, missing)
    own_length, clean_length = _length(own).clamp(min=1e-8), _length(clean).clamp(min=1e-8)
    share = per_image((own_length / (own_length + clean_length)).clamp(max=ALPHA_MAX), x)
    return ((x_adv + OVERSHOOT * own) * (1 - share) + (x + OVERSHOOT * clean) * share).clamp(0, 1)


def project_onto_plane(x: Tensor, normal: Tensor, change: Tensor) -> Tensor:
    """Return the least delta in L∞ with normal · delta = change and x + delta in [0, 1].

    With every pixel moved by min(bound, its room) in the direction that counts, normal · delta is a piecewise linear
    function of the bound that rises from 0: its corners are the pixels' rooms. Where even the corners of the box do not
    reach the plane, delta goes to the nearest of them.

    Args:
        x: Points in the box [N, ...].
        normal: The planes' normals, [N, ...].
        change: What normal · x lacks, [N].
    """
    direction = normal.sign() * per_image(change.sign(), x)
    room = torch.where(direction > 0, 1 - x, x)
    bound = _bound(room.flatten(1), normal.abs().flatten(1), change.abs()[:, None])
    return direction * torch.minimum(room, per_image(bound, x))


def _bound(room: Tensor, weight: Tensor, wanted: Tensor) -> Tensor:
    """Return the bound at which Σ min(bound, room) · weight is `wanted` [N, 1]; room and weight are [N, D]."""
    corners, order = room.sort(dim=1)
    weight = weight.gather(1, order)
    used_up = (corners * weight).cumsum(dim=1)
    still_free = weight.flip(1).cumsum(dim=1).flip(1)  # from each corner on
    heights = used_up + corners * (still_free - weight)
    segment = torch.searchsorted(heights, wanted).clamp(max=room.shape[1] - 1)
    before = (used_up - corners * weight).gather(1, segment)
    slope = still_free.gather(1, segment).clamp(min=torch.finfo(room.dtype).tiny)
    return ((wanted - before) / slope).clamp(min=0)[:, 0]


def _length(delta: Tensor) -> Tensor:
    return delta.flatten(1).abs().amax(dim=1)
