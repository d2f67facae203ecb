"""APGD (Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse attacks").

Projected gradient descent with momentum and nothing to tune: steps start at twice the radius, and at checkpoints where
the loss has stalled they are halved and the climb goes back to its best point.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prunekit.attacks.gradient import slope_at
from prunekit.attacks.losses import LossPerImage
from prunekit.attacks.steps import STEPS, Norm, per_image
from prunekit.attacks.strong import RISING_SHARE, Peak

MOMENTUM = 0.75  # the share of the new step; the rest goes on as the last one went
# Steps up to the first checkpoint, how much shorter each period is than the one before, and the shortest, as shares of
# all steps.
_FIRST_PERIOD, _SHORTER, _SHORTEST = 0.22, 0.03, 0.06


def apgd(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    loss_per_image: LossPerImage,
    eps: float,
    steps: int,
    norm: Norm = "linf",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Climb one loss from a random point of the ball; batch normalization must be in eval mode.

    Args:
        model: A classifier: maps images to logits [N, C].
        x: Clean images [N, ...] in [0, 1].
        labels: Their classes, int64 [N].
        loss_per_image: Maps logits to losses [N], to be raised.
        eps: Radius of the ball.
        steps: Gradient steps; the climb ends early when every image is misclassified.
        norm: The ball's.
        generator: Source of the random start, on x's device.

    Returns:
        Per image a misclassified point of the climb, else the one of the highest loss, [N, ...].
    """
    x_adv = before = STEPS[norm](eps, 0.0).random_start(x, generator)
    outputs, loss, grad = slope_at(model, x_adv, loss_per_image)
    fooled, found = outputs.argmax(dim=1) != labels, x_adv
    peak, step_sizes = Peak(x_adv, grad, loss), StepSizes(x, 2 * eps, loss)
    for step, period in enumerate(_periods(steps)):
        if fooled.all():
            break
        move = STEPS[norm](eps, step_sizes.current)
        forward = move.project(move.step(x_adv, grad), x) - x_adv
        share = MOMENTUM if step else 1.0
        x_adv, before = move.project(x_adv + share * forward + (1 - share) * (x_adv - before), x), x_adv
        previous_loss = loss
        outputs, loss, grad = slope_at(model, x_adv, loss_per_image)
        is_wrong = outputs.argmax(dim=1) != labels
        fooled, found = fooled | is_wrong, torch.where(per_image(is_wrong, x), x_adv, found)
        peak.update(x_adv, grad, loss)
        step_sizes.rises += loss > previous_loss
        if period:
            stalled = per_image(step_sizes.halve(peak.loss, period), x)
            x_adv, grad = torch.where(stalled, peak.x_adv, x_adv), torch.where(stalled, peak.grad, grad)
    return torch.where(per_image(fooled, x), found, peak.x_adv)


class StepSizes:
    """Each image's step size, [N, 1, ...], and what has happened since the last checkpoint, [N]."""

    def __init__(self, x: Tensor, first: float, loss: Tensor) -> None:
        self.current = per_image(x.new_full((len(x),), first), x)
        self.rises = x.new_zeros(len(x))
        self._best_loss = loss
        self._was_halved = torch.ones_like(loss, dtype=torch.bool)

    def halve(self, best_loss: Tensor, period: int) -> Tensor:
        """At a checkpoint, halve the steps of images whose loss has stalled for `period` steps; return which, [N]."""
        too_few_rises = self.rises <= RISING_SHARE * period
        nothing_new = ~self._was_halved & (best_loss <= self._best_loss)
        self._was_halved, self._best_loss = too_few_rises | nothing_new, best_loss
        self.current = torch.where(per_image(self._was_halved, self.current), self.current / 2, self.current)
        self.rises = torch.zeros_like(self.rises)
        return self._was_halved


def _periods(steps: int) -> Iterator[int]:
    """Yield for each step how many steps the checkpoint after it looks back on; 0 where there is none."""
    period, since = max(int(_FIRST_PERIOD * steps), 1), 0
    for _ in range(steps):
        since += 1
        yield period if since == period else 0
        if since == period:
            period, since = max(period - max(int(_SHORTER * steps), 1), max(int(_SHORTEST * steps), 1)), 0
